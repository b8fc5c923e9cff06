"""Learned coefficients as a page: what λ buys, and the weights of each layer and kind of module."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import mean

from safemerge.core.module_names import by_kind_and_position
from safemerge.plots.page import Figure, Json, axis, figure, html_table, page
from safemerge.reports.learning import Coefficients, LayerCoefficients

ROW_PX = 34
LOSSES_PX = 260
COLUMNS = ("λ", "step", "task loss", "from", "safety loss", "from", "mean α", "mean β", "seconds")
COLOURS = {"task": "#0072B2", "safety": "#D55E00"}
"""From the Okabe-Ito palette: told apart by colour-blind readers too."""


def coefficients_html(records: Sequence[Coefficients]) -> str:
    """Losses against λ, then a heat map of α and one of β for each λ, above a table.

    Args:
        records: of one task and one safety adapter, in the order of their λ.
    """
    layers = len(records[0].layers)
    return page(
        f"Coefficients of {layers} layers, for λ = {', '.join(f'{r.harm_weight:g}' for r in records)}",
        "weights of the task update (α) and the safety update (β) in every layer, fitted to training data; "
        "losses are nats a token of held-out answers, and say nothing of a harmful rate until it is measured",
        [_losses(records), *(_heat(record, what) for record in records for what in ("task", "safety"))],
        html_table(COLUMNS, [coefficient_row(record) for record in records]),
    )


def coefficient_row(record: Coefficients) -> list[str]:
    """A fit's figures as text, in the order of ``COLUMNS``."""
    start, final = record.losses.validation_start, record.losses.validation_final
    betas = [layer.safety for layer in record.layers if layer.safety is not None]
    return [
        f"{record.harm_weight:g}",
        f"{record.steps} of {record.steps_run}",
        f"{final.task:.4f}",
        f"{start.task:.4f}",
        f"{final.safety:.4f}",
        f"{start.safety:.4f}",
        f"{mean(layer.task for layer in record.layers):.3f}",
        f"{mean(betas):.3f}" if betas else "–",
        f"{record.cost.wall_s:.1f}",
    ]


def _losses(records: Sequence[Coefficients]) -> Figure:
    names = [f"{record.harm_weight:g}" for record in records]
    traces: list[Json] = []
    for what, colour in COLOURS.items():
        for when, dash in (("validation_final", "solid"), ("validation_start", "dot")):
            found = [getattr(getattr(record.losses, when), what) for record in records]
            word = "learned" if when == "validation_final" else "at the start"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{what} loss {word}",
                    "x": names,
                    "y": found,
                    "line": {"color": colour, "dash": dash},
                    "marker": {"size": 9, "symbol": "circle" if dash == "solid" else "circle-open"},
                    "hovertemplate": f"λ = %{{x}}<br>{what} loss {word} %{{y:.4f}}<extra></extra>",
                }
            )
    layout: Json = {
        "xaxis": axis(title={"text": "λ, weight of the loss of safe answers"}, type="category"),
        "yaxis": axis(title={"text": "held-out loss"}, rangemode="tozero"),
    }
    return figure(traces, layout, LOSSES_PX)


def _heat(record: Coefficients, what: str) -> Figure:
    """Weights of one update by kind of module (rows) and position (columns)."""
    layers = {layer.module: layer for layer in record.layers}
    kinds, positions, modules = by_kind_and_position(list(layers))
    found = {at: layers[there[0]] for at, there in modules.items()}
    cells = [[found.get((kind, place)) for place in positions] for kind in kinds]
    symbol = {"task": "α", "safety": "β"}[what]
    trace: Json = {
        "type": "heatmap",
        "x": positions,
        "y": [escape(kind) for kind in kinds],
        "z": [[None if layer is None else getattr(layer, what) for layer in row] for row in cells],
        "text": [[_hover(layer, what, symbol) for layer in row] for row in cells],
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": "Viridis",
        "zmin": 0,
        "zmax": max(1.0, *(getattr(layer, what) or 0.0 for layer in record.layers)),
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
    }
    title = f"λ = {record.harm_weight:g}: {symbol}, weight of the {what} update"
    layout: Json = {
        "title": {"text": title, "font": {"size": 14}},
        "xaxis": axis(title={"text": "layer"}, type="category", showgrid=False),
        "yaxis": axis(autorange="reversed", automargin=True, showgrid=False),
    }
    return figure([trace], layout, ROW_PX * len(kinds), showlegend=False)


def _hover(layer: LayerCoefficients | None, what: str, symbol: str) -> str:
    if layer is None or (weight := getattr(layer, what)) is None:
        return ""
    started = getattr(layer, f"start_{what}")
    return f"<b>{escape(layer.module)}</b><br>{symbol} = {weight:.4f}, from {started:.4f}"
