"""Pictures of a merge: which layers were merged, and how their cosines lie."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil
from typing import Any, NamedTuple

from safemerge.core.module_names import module_kinds, natural_order, position
from safemerge.plots.page import Json, axis, figure, page
from safemerge.records import LayerReport, MergeReport

ROW_HEIGHT_PX = 150
ROW_GAP_PX = 38
MOST_TICKS = 40
"""Layer numbers that fit beside each other."""


class _State(NamedTuple):
    """How a layer came out, as the legend names it."""

    name: str
    colour: str
    """From the Okabe-Ito palette: told apart by colour-blind readers too."""


_MERGED = _State("merged", "#D55E00")
_KEPT = _State("kept as fine-tuned", "#0072B2")
_UNDEFINED_MERGED = _State("merged, cosine undefined", "#CC79A7")
_UNDEFINED_KEPT = _State("kept, cosine undefined", "#777777")
_STATES = (_MERGED, _KEPT, _UNDEFINED_MERGED, _UNDEFINED_KEPT)


def layer_plot_html(report: MergeReport) -> str:
    """Projected cosine of every layer as a page: one row a kind of module, one bar a layer.

    Bars are coloured by what became of the layer; a cross on the axis stands for a
    cosine that is undefined. The dashed line is the threshold.
    """
    kinds = module_kinds([layer.module for layer in report.layers])
    rows = list(dict.fromkeys(kinds.values())) or ["no layers"]
    positions = sorted({position(layer.module) for layer in report.layers}, key=natural_order)
    bar_width = min(0.75, len(positions) / 16)
    plot_px = ROW_HEIGHT_PX * len(rows)
    traces: list[Json] = []
    axes: Json = {}
    titles: list[Json] = []
    lines: list[Json] = []
    named: set[_State] = set()
    for number, row in enumerate(rows):
        vertical = f"y{number + 1}"
        top, bottom = (len(rows) - number) / len(rows), (len(rows) - number - 1) / len(rows)
        axes[f"yaxis{number + 1}"] = axis(
            domain=[bottom, top - ROW_GAP_PX / plot_px], range=[0, _top(report)], nticks=5, rangemode="tozero"
        )
        titles.append(_row_title(row, top))
        if report.threshold is not None:
            lines.append(
                _line(x0=0, x1=1, xref="paper", y0=report.threshold, y1=report.threshold, yref=vertical)
            )
        layers = [layer for layer in report.layers if kinds[layer.module] == row]
        for state in _STATES:
            if chosen := [layer for layer in layers if _state(layer) is state]:
                trace = _trace(chosen, state, bar_width)
                traces.append(trace | {"yaxis": vertical, "showlegend": state not in named})
                named.add(state)
    axes["xaxis"] = axis(
        title={"text": "layer"},
        type="category",
        categoryorder="array",
        categoryarray=positions,
        range=[-0.7, len(positions) - 0.3],
        dtick=ceil(len(positions) / MOST_TICKS) or 1,
        tickangle=0,
        ticks="outside",
        ticklen=6,
        showgrid=False,
        anchor=f"y{len(rows)}",
    )
    layout = axes | {"annotations": titles, "shapes": lines, "barmode": "overlay"}
    return _page(traces, layout, plot_px, report)


def _state(layer: LayerReport) -> _State:
    if layer.cosine is None:
        return _UNDEFINED_MERGED if layer.merged else _UNDEFINED_KEPT
    return _MERGED if layer.merged else _KEPT


def _trace(layers: Sequence[LayerReport], state: _State, bar_width: float) -> Json:
    """Bars of one state in one row; crosses on the axis where the cosine is undefined."""
    trace: Json = {
        "x": [position(layer.module) for layer in layers],
        "name": state.name,
        "legendgroup": state.name,
        "legendrank": _STATES.index(state),
        "hovertext": [_hover(layer) for layer in layers],
        "hoverinfo": "text",
    }
    if layers[0].cosine is None:
        marker = {"symbol": "x", "size": 9, "color": state.colour}
        return trace | {
            "type": "scatter",
            "mode": "markers",
            "y": [0] * len(layers),
            "marker": marker,
            "cliponaxis": False,
        }
    cosines = [layer.cosine for layer in layers]
    return trace | {"type": "bar", "y": cosines, "width": bar_width, "marker": {"color": state.colour}}


def _row_title(kind: str, top: float) -> Json:
    """The name of a row, in the gap above it."""
    return {
        "text": f"<b>{escape(kind)}</b>",
        "font": {"size": 13},
        "showarrow": False,
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": top,
        "yref": "paper",
        "yanchor": "top",
        "yshift": -ROW_GAP_PX / 3,
    }


def _line(**ends: Any) -> Json:
    return {"type": "line", "line": {"dash": "dash", "width": 1.5, "color": "#222222"}} | ends


def _hover(layer: LayerReport) -> str:
    lines = [
        f"<b>{escape(layer.module)}</b>",
        "cosine undefined" if layer.cosine is None else f"cosine {layer.cosine:.4f}",
        f"{'merged' if layer.merged else 'kept'}: {escape(layer.reason)}",
    ]
    for name, norm in (("task", layer.task_norm), ("safety", layer.safety_norm)):
        lines.append(f"‖ΔW<sub>{name}</sub>‖ {'absent' if norm is None else f'{norm:.4g}'}")
    return "<br>".join(lines)


def _top(report: MergeReport) -> float:
    """Upper end of the cosine axis: a little above the largest cosine and a threshold that can be seen."""
    figures = [layer.cosine for layer in report.layers if layer.cosine is not None]
    if report.threshold is not None and report.threshold <= 1:
        figures.append(report.threshold)
    return 1.12 * (max(figures, default=0) or 1)


def _page(traces: Sequence[Json], layout: Json, plot_px: int, report: MergeReport) -> str:
    """The figure below a headline with the figures of the merge, as one HTML page."""
    merged = sum(layer.merged for layer in report.layers)
    threshold = "no threshold" if report.threshold is None else f"threshold {report.threshold:.4g}"
    if report.quantile is not None:
        threshold += f" (quantile {report.quantile:g})"
    task, safety = report.weights
    weights = f"weights {task:g} and {safety:g}"
    if any(layer.weights is not None for layer in report.layers):
        weights = f"weights of each layer, on average {task:.3g} and {safety:.3g}"
    return page(
        f"{merged} of {len(report.layers)} layers merged",
        f"cosine of each update with its safety projection · {threshold} · "
        f"method {report.method} · {weights}",
        [figure(traces, layout, plot_px)],
    )
