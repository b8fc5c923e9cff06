"""Figures over runs as SVG: a dot and an interval for each run and arm.

Drawn here and not by a library: these are dots and lines, and the page loads in one request.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from safemerge.arms import ALIGNED, ARM_TITLES, CANDIDATE, FINE_TUNED
from safemerge.records import SuiteKind
from safemerge_airflow.page.records import PipelineRun
from safemerge_airflow.page.views import ARMS, Figure, in_words, rate, score, when

RUNS = 30
"""Runs that a chart shows, the newest at the right."""
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 24
OFFSET = {ALIGNED: -2.5, FINE_TUNED: 2.5, CANDIDATE: 0.0}
"""Pixels that arms stand apart, so that their intervals can be told apart. The candidate is drawn last."""


class Dot(NamedTuple):
    """One figure of one run, in pixels."""

    x: float
    y: float
    low: float | None
    high: float | None
    arm: str
    label: str
    """What it says when it is pointed at."""
    run_id: str


class Tick(NamedTuple):
    """A line of the vertical axis."""

    y: float
    label: str


class Chart(NamedTuple):
    """One figure over runs, ready to be drawn."""

    title: str
    dots: Sequence[Dot]
    ticks: Sequence[Tick]
    arms: Sequence[str]
    first: str
    last: str
    description: str
    """What a screen reader says of it."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


class Series(NamedTuple):
    """Figures of one suite or task, by run and arm."""

    title: str
    points: Sequence[tuple[PipelineRun, str, Figure]]

    @property
    def is_share(self) -> bool:
        """Whether these are rates."""
        return all(figure.is_share for _, _, figure in self.points)


def charts(runs: Sequence[PipelineRun]) -> list[Chart]:
    """A chart for each suite and task of the newest runs: harm first, utility last."""
    measured = [run for run in runs if run.arms][:RUNS][::-1]
    return [_chart(one, measured) for one in _series(measured)]


def _series(runs: Sequence[PipelineRun]) -> Iterator[Series]:
    found: dict[tuple[int, str], list[tuple[PipelineRun, str, Figure]]] = {}
    for run in runs:
        for arm in OFFSET.keys() & run.arms.keys():
            figures = run.arms[arm]
            for suite, figure in figures.suites.items():
                harmful = figure.kind is SuiteKind.HARMFUL
                key = (0, f"Harmful rate, {suite}") if harmful else (1, f"Over-refusal rate, {suite}")
                found.setdefault(key, []).append((run, arm, rate(figure)))
            if utility := figures.utility:
                key = (2, f"Utility, {utility.task} {utility.metric}")
                found.setdefault(key, []).append((run, arm, score(utility)))
    for (_, title), points in sorted(found.items(), key=lambda item: item[0]):
        yield Series(title, points)


def _chart(series: Series, runs: Sequence[PipelineRun]) -> Chart:
    shown = [(run, arm, figure) for run, arm, figure in series.points if figure.value is not None]
    ends = [end for _, _, figure in shown for end in _ends(figure)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = _step(high - low)
    below, above = (math.ceil(round(end / step, 6)) for end in (-low, high))
    if below == above == 0:  # all figures are zero
        above = 1
    bottom, top = -below * step, above * step

    def y(value: float) -> float:
        return round(TOP + (top - value) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    gap = (WIDTH - LEFT - RIGHT) / len(runs)
    place = {run.run_id: LEFT + gap * (index + 0.5) for index, run in enumerate(runs)}
    dots = [
        Dot(
            x=round(place[run.run_id] + OFFSET[arm], 1),
            y=y(figure.value or 0.0),
            low=y(figure.interval.low) if figure.interval else None,
            high=y(figure.interval.high) if figure.interval else None,
            arm=arm,
            label=_label(run, arm, figure),
            run_id=run.run_id,
        )
        for run, arm, figure in sorted(shown, key=lambda point: list(OFFSET).index(point[1]))
    ]
    first, last = _time_axis(runs)
    return Chart(
        title=series.title,
        dots=dots,
        ticks=[
            Tick(y(step * line), _tick(step * line, series.is_share)) for line in range(-below, above + 1)
        ],
        arms=[arm for arm in ARMS if any(dot.arm == arm for dot in dots)],
        first=first,
        last=last,
        description=_description(series, shown),
    )


def _ends(figure: Figure) -> tuple[float, ...]:
    value = figure.value or 0.0
    return (value, figure.interval.low, figure.interval.high) if figure.interval else (value,)


def _step(span: float) -> float:
    """Distance of lines, such that there are about four of them at round figures."""
    span = max(span, 0.01)
    sizes = [base * 10.0**power for power in range(-3, 12) for base in (1, 2.5, 5)]
    return next((size for size in sizes if span / size <= 4.5), sizes[-1])


def _tick(value: float, is_share: bool) -> str:
    return f"{100 * value:.4g} %" if is_share else f"{value:.4g}"


def _time_axis(runs: Sequence[PipelineRun]) -> tuple[str, str]:
    """What stands at the ends: days, or times where all runs are of one day."""
    first, last = when(runs[0].started_ms), when(runs[-1].started_ms)
    if first == last:
        return first, ""
    day, time = slice(0, 10), slice(11, None)
    return (first, last[time]) if first[day] == last[day] else (first[day], last[day])


def _label(run: PipelineRun, arm: str, figure: Figure) -> str:
    text = f"{when(run.started_ms)}, {ARM_TITLES[arm]}: {figure.words(figure.value)}"
    if figure.interval:
        text += f" ({figure.words(figure.interval.low)} to {figure.words(figure.interval.high)})"
    return f"{text}, {figure.asked}" if figure.asked else text


def _description(series: Series, shown: Sequence[tuple[PipelineRun, str, Figure]]) -> str:
    candidate = [figure.value for _, arm, figure in shown if arm == CANDIDATE and figure.value is not None]
    if not candidate:
        return f"{series.title}: not measured in these runs."
    newest, least, most = (
        in_words(value, series.is_share) for value in (candidate[-1], min(candidate), max(candidate))
    )
    return (
        f"{series.title} of the candidate in {len(candidate)} runs: {newest} in the newest, "
        f"{least} to {most} in all. The table of runs has the figures."
    )
