"""Pictures of scores: a heat map of each adapter's layers, and how their cosines are spread."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from safemerge.core.module_names import by_kind_and_position
from safemerge.errors import MissingDependencyError
from safemerge.plots.page import Figure, Json, axis, figure, page, plain
from safemerge.reports.adapters import AdapterCosines, CosineReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

ROW_PX = 34
HISTOGRAM_PX = 220


class Heat(NamedTuple):
    """Cosines by kind of module (rows) and position (columns)."""

    kinds: list[str]
    positions: list[str]
    cosines: list[list[float | None]]
    """None where the cosine is undefined or there is no such layer."""


def heat(adapter: AdapterCosines) -> Heat:
    """The layers of an adapter as a matrix."""
    cosines = {layer.module: layer.cosine for layer in adapter.layers}
    kinds, positions, cells = by_kind_and_position(list(cosines))
    found = {at: cosines[modules[0]] for at, modules in cells.items()}
    return Heat(kinds, positions, [[found.get((kind, place)) for place in positions] for kind in kinds])


def cosines_html(report: CosineReport) -> str:
    """A heat map for each adapter and one histogram of all, as a page."""
    layers = sum(len(adapter.layers) for adapter in report.adapters)
    return page(
        f"Cosines of {layers} layers",
        "how far each update lies within the directions of safety alignment: low ones left them",
        [*(_heat_figure(adapter) for adapter in report.adapters), _histogram_figure(report)],
    )


def cosines_png(report: CosineReport) -> bytes:
    """The same as a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError as error:
        raise MissingDependencyError("matplotlib", "plots") from error
    maps = [heat(adapter) for adapter in report.adapters]
    heights = [1 + 0.3 * len(matrix.kinds) for matrix in maps]
    canvas = Canvas(figsize=(11, sum(heights) + 3), layout="constrained")
    FigureCanvasAgg(canvas)
    _draw(canvas, report, maps, heights)
    image = BytesIO()
    # Neither time nor version, so that the bytes depend on the report alone.
    canvas.savefig(image, format="png", dpi=110, metadata={"Software": None})
    return image.getvalue()


def _draw(canvas: Canvas, report: CosineReport, maps: list[Heat], heights: list[float]) -> None:
    *places, last = canvas.subplots(len(maps) + 1, 1, height_ratios=[*heights, 3], squeeze=False)[:, 0]
    for adapter, matrix, place in zip(report.adapters, maps, places, strict=True):
        rows = [[float("nan") if cosine is None else cosine for cosine in row] for row in matrix.cosines]
        image = place.imshow(rows, aspect="auto", cmap="viridis", interpolation="nearest")
        place.set_title(adapter.name, loc="left", fontsize=10, parse_math=False)
        place.set_yticks(range(len(matrix.kinds)), matrix.kinds)
        step = max(1, len(matrix.positions) // 32)
        place.set_xticks(range(0, len(matrix.positions), step), matrix.positions[::step])
        canvas.colorbar(image, ax=place)
    for adapter in report.adapters:
        last.hist(adapter.cosines, bins=40, alpha=0.6, label=adapter.name)
    last.set(xlabel="cosine", ylabel="layers")
    for text in last.legend().get_texts():
        text.set_parse_math(False)


def _heat_figure(adapter: AdapterCosines) -> Figure:
    matrix = heat(adapter)
    trace: Json = {
        "type": "heatmap",
        "x": matrix.positions,
        "y": matrix.kinds,
        "z": matrix.cosines,
        "colorscale": "Viridis",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{x}, %{y}<br>cosine %{z:.4f}<extra></extra>",
        "hoverongaps": False,
    }
    layout: Json = {
        "title": {"text": plain(adapter.name), "font": {"size": 14}},
        "xaxis": axis(title={"text": "layer"}, type="category", showgrid=False),
        "yaxis": axis(autorange="reversed", automargin=True, showgrid=False),
    }
    return figure([trace], layout, ROW_PX * len(matrix.kinds), showlegend=False)


def _histogram_figure(report: CosineReport) -> Figure:
    traces: list[Json] = [
        {
            "type": "histogram",
            "x": adapter.cosines,
            "name": plain(adapter.name),
            "opacity": 0.7,
            "xbins": {"size": 0.02},
        }
        for adapter in report.adapters
    ]
    layout: Json = {
        "xaxis": axis(title={"text": "cosine"}),
        "yaxis": axis(title={"text": "layers"}),
        "barmode": "overlay",
    }
    return figure(traces, layout, HISTOGRAM_PX)
