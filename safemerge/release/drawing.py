"""Where marks, cells and bars of the report's pictures lie: numbers for the template to draw.

Drawn by hand as SVG and tables: some kilobytes, told by screen readers, alike in light, dark and print.
plotly would make the page 4.8 MB, which a nightly run stores and a phone has to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

from safemerge.core.module_names import by_kind_and_layer, module_kinds
from safemerge.gate.wording import limit_in_percent
from safemerge.plots.pareto import ArmPoint, Limits, Span, front, label_places, spans
from safemerge.plots.scales import round_step
from safemerge.records import Estimate, LayerReport, MergeReport, SuiteKind
from safemerge.reports.release import ArmFigures, ReleaseReport, Role, SuiteFigures, UtilityMetric

LONGEST_LABEL = 40
"""Characters of an arm's name beside its mark."""
LETTER_PX = 6.7
"""Width of a letter of the pictures' text, on average; of a wide typeface, so that others fit, too."""
NONE = (None, None)
"""Weights of a layer that has none of its own."""
SHADES = 8
"""Colours of a heat map, from low to high; the style sheet has them."""


class Frame(NamedTuple):
    """Size of a Pareto picture and of the plot within it, in pixels of the width that it is made for."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    steps: int
    """Ticks across, at most."""
    numbered: bool
    """Whether arms bear numbers that a list beside explains, for want of room for names."""

    @property
    def centre(self) -> float:
        """Of the plot, across."""
        return (self.left + self.right) / 2

    @property
    def middle(self) -> float:
        """Of the plot, up and down."""
        return (self.top + self.bottom) / 2


WIDE = Frame(760, 388, 60, 744, 26, 338, 7, numbered=False)
NARROW = Frame(340, 366, 66, 334, 26, 300, 4, numbered=True)
"""For a phone upright; the style sheet tells when."""


class Mark(NamedTuple):
    """An arm in the Pareto picture, in pixels."""

    title: str
    label: str
    """What stands beside the mark: the title, or a number."""
    state: str
    """``chosen``, ``front`` or ``beaten``."""
    x: float
    y: float
    left: float
    right: float
    low: float
    high: float
    label_x: float
    label_y: float
    anchor: str


class Pareto(NamedTuple):
    """Utility against the harmful rate on one suite."""

    suite: str
    frame: Frame
    marks: list[Mark]
    steps: str
    """Path of the front."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    limit_x: float | None
    limit_x_text: str
    limit_x_text_at: float
    """Its middle: as near its line as the picture's edges let it be."""
    limit_y: float | None
    limit_y_text: str
    front: list[str]
    """Titles of the arms on it."""


class Cell(NamedTuple):
    """A layer, or several where experts share a place."""

    text: str
    shade: int | None
    """None where there is no figure."""
    outlined: bool
    said: str


class Heat(NamedTuple):
    """Figures by kind of module (rows) and place (columns)."""

    title: str
    outlined: str
    """What an outline means; empty where there is none."""
    places: list[str]
    rows: list[tuple[str, list[Cell | None]]]
    low: float
    high: float
    threshold: float | None
    """Where the threshold lies on the scale, in [0, 1]; None where there is none, or it lies outside."""


class CategoryBars(NamedTuple):
    """Harmful rates by category of one suite."""

    suite: str
    arms: list[str]
    rows: list[tuple[str, list[Estimate | None]]]


# --- Pareto ---------------------------------------------------------------------


def paretos(report: ReleaseReport, frame: Frame = WIDE) -> Iterator[Pareto]:
    """A picture for each harmful suite in which arms have both figures."""
    metric = report.utility
    if metric is None:
        return
    limit = report.policy.get("max_harmful_rate")
    limits = Limits(float(limit) if isinstance(limit, int | float) else None, metric.worst)
    asked = _utility_limit(report, metric)
    for suite in report.candidate.suites:
        if suite.kind is not SuiteKind.HARMFUL:
            continue
        points = [point for arm in report.arms if (point := arm_point(arm, suite.suite)) is not None]
        if points:
            yield _pareto(suite.suite, frame, points, limits, metric.higher_is_better, asked)


def _utility_limit(report: ReleaseReport, metric: UtilityMetric) -> str:
    """What the policy asks of the utility, in the terms of the rule that asks the most."""
    if metric.worst is None:
        return ""
    gain = report.policy.get("min_gain_kept")
    if not isinstance(gain, int | float) or metric.worst == report.policy.get("min_utility"):
        return f"policy: at {'least' if metric.higher_is_better else 'most'} {metric.worst:.4g}"
    return f"policy: {limit_in_percent(gain)} of the gain kept ({metric.worst:.4g})"


def arm_point(arm: ArmFigures, suite: str) -> ArmPoint | None:
    """An arm as a point; None where a figure is missing, or does not compare with the candidate's."""
    found = _same_suite(arm, suite)
    if found is None or found.rate is None or arm.utility is None or arm.differs:
        return None
    rate = found.rate
    name = arm.title if len(arm.title) <= LONGEST_LABEL else f"{arm.title[: LONGEST_LABEL - 1]}…"
    return ArmPoint(
        name, arm.utility, rate.value, arm.utility_interval, rate.interval, arm.role is Role.CANDIDATE
    )


def _pareto(
    suite: str,
    frame: Frame,
    points: list[ArmPoint],
    limits: Limits,
    higher_is_better: bool,
    limit_x_text: str,
) -> Pareto:
    across, up = spans(points, limits)
    unbeaten = front(points, higher_is_better=higher_is_better)

    def x(value: float) -> float:
        share = across.share(value)
        return round(frame.left + (frame.right - frame.left) * (share if higher_is_better else 1 - share), 1)

    def y(value: float) -> float:
        return round(frame.bottom - (frame.bottom - frame.top) * up.share(value), 1)

    labels = [str(number) if frame.numbered else point.name for number, point in enumerate(points, 1)]
    labelled = [point._replace(name=label) for point, label in zip(points, labels, strict=True)]
    places = label_places(labelled, across, up, higher_is_better)
    marks = [
        _mark(point, label, place, point in unbeaten, x, y)
        for point, label, place in zip(points, labels, places, strict=True)
    ]
    steps = "".join(
        f"{f'V{y(p.harmful_rate)}H{x(p.utility)}' if number else f'M{x(p.utility)} {y(p.harmful_rate)}'}"
        for number, p in enumerate(unbeaten)
    )
    harmful, worst = limits
    half = LETTER_PX * len(limit_x_text) / 2
    return Pareto(
        suite,
        frame,
        marks,
        steps,
        [(x(tick), f"{tick:g}") for tick in ticks(across, frame.steps)],
        [(y(tick), f"{100 * tick:g} %") for tick in ticks(Span(0, up.high))],
        None if worst is None else x(worst),
        limit_x_text,
        0.0 if worst is None else round(min(max(x(worst), half), frame.width - half), 1),
        None if harmful is None else y(harmful),
        "" if harmful is None else f"policy: at most {limit_in_percent(harmful)}",
        [point.name for point in unbeaten],
    )


def _mark(
    point: ArmPoint,
    label: str,
    place: str,
    unbeaten: bool,
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> Mark:
    utility, harm = point.utility_interval, point.harmful_interval
    left, right = (x(utility.low), x(utility.high)) if utility else (x(point.utility),) * 2
    low, high = (y(harm.low), y(harm.high)) if harm else (y(point.harmful_rate),) * 2
    vertical, side = place.split()
    here, there = x(point.utility), y(point.harmful_rate)
    return Mark(
        point.name,
        label,
        "chosen" if point.chosen else "front" if unbeaten else "beaten",
        here,
        there,
        min(left, right),
        max(left, right),
        low,
        high,
        here + (9 if side == "right" else -9),
        there + (-8 if vertical == "top" else 18),
        "start" if side == "right" else "end",
    )


def ticks(span: Span, most: int = WIDE.steps) -> list[float]:
    """Round values within a span, at equal steps of 1, 2 or 5 times a power of ten.

    >>> ticks(Span(0.0, 0.8))
    [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    step = round_step((span.high - span.low) / most)
    first, last = math.ceil(span.low / step - 1e-9), math.floor(span.high / step + 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


# --- layers ---------------------------------------------------------------------


def heats(merge: MergeReport) -> Iterator[Heat]:
    """Cosines, and where each layer has weights of its own, those of the task and of the safety adapter."""
    yield _heat(
        "Cosine of each layer's update with its safety projection",
        merge.layers,
        lambda layer: layer.cosine,
        "merged",
        merge.threshold,
    )
    # Only some methods give every layer weights of its own.
    if any(layer.weights for layer in merge.layers):
        yield _heat("Weight of the task adapter", merge.layers, lambda layer: (layer.weights or NONE)[0])
        yield _heat("Weight of the safety adapter", merge.layers, lambda layer: (layer.weights or NONE)[1])


def _heat(
    title: str,
    layers: tuple[LayerReport, ...],
    figure: Callable[[LayerReport], float | None],
    outlined: str = "",
    threshold: float | None = None,
) -> Heat:
    by_module = {layer.module: layer for layer in layers}
    kinds, places, cells = by_kind_and_layer(list(by_module))
    defined = [value for layer in layers if (value := figure(layer)) is not None]
    span = Span(min(defined, default=0.0), max(defined, default=1.0))

    def cell(kind: str, place: str) -> Cell | None:
        here = [by_module[module] for module in cells.get((kind, place), ())]
        return _cell(here, figure, span, bool(outlined))

    rows = [(kind, [cell(kind, place) for place in places]) for kind in kinds]
    at = None if threshold is None or span.high <= span.low else span.share(threshold)
    return Heat(
        title, outlined, places, rows, span.low, span.high, at if at is not None and 0 <= at <= 1 else None
    )


def _cell(
    layers: list[LayerReport],
    figure: Callable[[LayerReport], float | None],
    span: Span,
    outline: bool,
) -> Cell | None:
    if not layers:
        return None
    values = [value for layer in layers if (value := figure(layer)) is not None]
    merged = outline and any(layer.merged for layer in layers)
    name = layers[0].module if len(layers) == 1 else f"{layers[0].module} and {len(layers) - 1} more, median"
    became = f", {'merged' if merged else 'kept'}: {layers[0].reason}" if outline else ""
    if not values:
        return Cell("·", None, merged, f"{name}: undefined{became}")
    value = median(values)
    share = span.share(value) if span.high > span.low else 0.0
    return Cell(
        _hundredths(value), min(SHADES - 1, int(SHADES * share)), merged, f"{name}: {value:.4f}{became}"
    )


def _hundredths(value: float) -> str:
    """Two digits after the point, without the point's zero.

    >>> _hundredths(0.347), _hundredths(1.2), _hundredths(-0.05)
    ('.35', '1.2', '-.05')
    """
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"


def layer_rows(merge: MergeReport) -> list[list[str]]:
    """By kind of module: layers, those merged, and the lowest, median and highest cosine."""
    kinds = module_kinds([layer.module for layer in merge.layers])
    rows = []
    for kind in dict.fromkeys(kinds.values()):
        layers = [layer for layer in merge.layers if kinds[layer.module] == kind]
        cosines = [layer.cosine for layer in layers if layer.cosine is not None]
        merged = sum(layer.merged for layer in layers)
        figures = (min(cosines), median(cosines), max(cosines)) if cosines else ()
        shown = [f"{cosine:.3f}" for cosine in figures] or ["–"] * 3
        rows.append([kind, str(len(layers)), str(merged), *shown])
    return rows


# --- categories -----------------------------------------------------------------


def category_bars(report: ReleaseReport) -> Iterator[CategoryBars]:
    """Rates by category of every harmful suite that has categories, arm beside arm.

    As in the table of arms, a star marks those that do not compare with the candidate.
    """
    for suite in report.candidate.suites:
        if suite.kind is not SuiteKind.HARMFUL or not suite.categories:
            continue
        found = [
            (f"{arm.title}{'*' if arm.differs else ''}", _same_suite(arm, suite.suite)) for arm in report.arms
        ]
        shown = [(title, other.categories) for title, other in found if other and other.categories]
        yield CategoryBars(
            suite.suite,
            [title for title, _ in shown],
            [(name, [rates.get(name) for _, rates in shown]) for name in suite.categories],
        )


def _same_suite(arm: ArmFigures, name: str) -> SuiteFigures | None:
    return next((suite for suite in arm.suites if suite.suite == name), None)
