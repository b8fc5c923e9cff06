"""Utility against harmful rate, arm by arm: what can be had of both, and what other arms beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from safemerge.plots.page import Figure, Json, axis, figure, plain
from safemerge.records import Interval

HEIGHT_PX = 420
CHOSEN, FRONT, BEATEN, LIMIT = "#D55E00", "#0072B2", "#777777", "#222222"
"""From the Okabe-Ito palette, and told apart by the shape of the mark, too."""

PLACES = ("top right", "bottom right", "top left", "bottom left")
"""Where a label may stand beside its mark, the best first."""

LETTER, LINE, GAP = 0.011, 0.05, 0.012
"""Size of a label's letters and lines, and its distance from the mark, in widths and heights of the plot."""


class ArmPoint(NamedTuple):
    """Where an arm lies."""

    name: str
    utility: float
    """In the metric's own unit."""
    harmful_rate: float
    utility_interval: Interval | None = None
    harmful_interval: Interval | None = None
    chosen: bool = False
    """Whether it is the one that the picture is about."""


class Limits(NamedTuple):
    """What a policy asks, in the units of the points; None where it asks nothing."""

    max_harmful_rate: float | None = None
    worst_utility: float | None = None


NO_LIMITS = Limits()


class Span(NamedTuple):
    """What an axis shows, from its lower end to its upper end."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """How far along the axis a value lies, in [0, 1]."""
        return (value - self.low) / (self.high - self.low)


def front(points: Sequence[ArmPoint], *, higher_is_better: bool = True) -> list[ArmPoint]:
    """The arms that no other beats, from the least utility to the most.

    An arm is beaten by one that is at least as good in both figures and better in one.
    Intervals do not count: two arms on the front may differ by chance.
    """
    sign = 1 if higher_is_better else -1

    def beats(one: ArmPoint, other: ArmPoint) -> bool:
        gain = sign * (one.utility - other.utility)
        harm = one.harmful_rate - other.harmful_rate
        return gain >= 0 and harm <= 0 and (gain > 0 or harm < 0)

    unbeaten = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(unbeaten, key=lambda point: (sign * point.utility, point.harmful_rate))


def pareto_figure(
    points: Sequence[ArmPoint],
    *,
    utility: str = "utility",
    higher_is_better: bool = True,
    limits: Limits = NO_LIMITS,
) -> Figure:
    """Every arm with both 95 % intervals, the front and the limits of a policy. Better is right and down.

    Args:
        points: The arms; at least one.
        utility: Name of the utility, for its axis.
        higher_is_better: The utility's direction; where lower is better, its axis runs backwards.
        limits: What a policy asks.
    """
    unbeaten = front(points, higher_is_better=higher_is_better)
    across, up = spans(points, limits)
    right, left = (across.high, across.low) if higher_is_better else (across.low, across.high)
    placed = dict(zip(points, label_places(points, across, up, higher_is_better), strict=True))
    states = (
        ("chosen", CHOSEN, "diamond", [point for point in points if point.chosen]),
        ("no arm beats it", FRONT, "circle", [point for point in unbeaten if not point.chosen]),
        ("beaten", BEATEN, "x", [p for p in points if p not in unbeaten and not p.chosen]),
    )
    traces = [_steps(unbeaten)]
    traces += [_marks(*state, placed) for state in states if state[3]]
    layout: Json = {
        "xaxis": axis(
            title={"text": f"{plain(utility)} ({'higher' if higher_is_better else 'lower'} is better)"},
            range=[left, right],
        ),
        "yaxis": axis(title={"text": "harmful rate"}, range=list(up), tickformat=".0%"),
        "shapes": _lines(limits),
        "annotations": _line_names(limits),
    }
    return figure(traces, layout, HEIGHT_PX)


def spans(points: Sequence[ArmPoint], limits: Limits) -> tuple[Span, Span]:
    """What the axes of utility and of the harmful rate show: all arms, their intervals, the limits."""
    across = [end for point in points for end in _ends(point.utility, point.utility_interval)]
    up = [end for point in points for end in _ends(point.harmful_rate, point.harmful_interval)]
    if limits.worst_utility is not None:
        across.append(limits.worst_utility)
    if limits.max_harmful_rate is not None:
        up.append(limits.max_harmful_rate)
    low, high = min(across), max(across)
    # Room for labels at both ends; a width even where all arms are alike.
    room = 0.18 * (high - low) or 0.1 * abs(high) or 1.0
    return Span(low - room, high + room), Span(-0.03, max(1.08 * max(up), 0.1))


def label_places(
    points: Sequence[ArmPoint], across: Span, up: Span, higher_is_better: bool = True
) -> list[str]:
    """For every arm where its label hides the least of marks and of labels placed before."""
    marks = []
    for point in points:
        x = across.share(point.utility)
        marks.append((x if higher_is_better else 1 - x, up.share(point.harmful_rate)))
    taken = [(x - GAP, y - GAP, x + GAP, y + GAP) for x, y in marks]
    places = dict.fromkeys(range(len(points)), PLACES[0])
    # From the top down, so that of two near arms the upper one has its label above.
    for number in sorted(places, key=lambda number: -marks[number][1]):
        boxes = {place: _label_box(marks[number], place, len(points[number].name)) for place in PLACES}
        best = min(PLACES, key=lambda place: sum(_overlap(boxes[place], other) for other in taken))
        taken.append(boxes[best])
        places[number] = best
    return list(places.values())


_Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in shares of the plot."""


def _label_box(mark: tuple[float, float], place: str, letters: int) -> _Box:
    x, y = mark
    vertical, side = place.split()
    left = x + GAP if side == "right" else x - GAP - LETTER * letters
    bottom = y + GAP if vertical == "top" else y - GAP - LINE
    return left, bottom, left + LETTER * letters, bottom + LINE


def _overlap(box: _Box, other: _Box) -> float:
    """Area that two boxes share; what sticks out of the plot counts as hidden."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    outside = max(0.0, -box[0], -box[1], box[2] - 1, box[3] - 1)
    return max(0.0, width) * max(0.0, height) + outside


def _ends(value: float, interval: Interval | None) -> tuple[float, ...]:
    return (value,) if interval is None else (value, interval.low, interval.high)


def _steps(unbeaten: Sequence[ArmPoint]) -> Json:
    """The least harm that an arm shows at each utility or more."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [point.utility for point in unbeaten],
        "y": [point.harmful_rate for point in unbeaten],
        "line": {"shape": "vh", "width": 1.5, "color": FRONT, "dash": "dot"},
        "hoverinfo": "skip",
    }


def _marks(
    name: str, colour: str, symbol: str, points: Sequence[ArmPoint], places: dict[ArmPoint, str]
) -> Json:
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": [point.utility for point in points],
        "y": [point.harmful_rate for point in points],
        "text": [plain(point.name) for point in points],
        "textposition": [places[point] for point in points],
        "error_x": _bars([(point.utility, point.utility_interval) for point in points], colour),
        "error_y": _bars([(point.harmful_rate, point.harmful_interval) for point in points], colour),
        "marker": {"size": 11, "color": colour, "symbol": symbol},
        "hovertext": [_hover(point) for point in points],
        "hoverinfo": "text",
        "cliponaxis": False,
    }


def _bars(figures: Sequence[tuple[float, Interval | None]], colour: str) -> Json:
    above = [interval.high - value if interval else 0.0 for value, interval in figures]
    below = [value - interval.low if interval else 0.0 for value, interval in figures]
    bar = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return bar | {"color": colour, "thickness": 1, "width": 3}


def _lines(limits: Limits) -> list[Json]:
    dash: Json = {"type": "line", "line": {"dash": "dash", "width": 1.5, "color": LIMIT}}
    lines: list[Json] = []
    if (rate := limits.max_harmful_rate) is not None:
        lines.append(dash | {"xref": "paper", "x0": 0, "x1": 1, "y0": rate, "y1": rate})
    if (worst := limits.worst_utility) is not None:
        lines.append(dash | {"yref": "paper", "y0": 0, "y1": 1, "x0": worst, "x1": worst})
    return lines


def _line_names(limits: Limits) -> list[Json]:
    """What the lines stand for, at their ends."""
    shared: Json = {"showarrow": False, "font": {"size": 11, "color": LIMIT}}
    names: list[Json] = []
    if (rate := limits.max_harmful_rate) is not None:
        across = {"text": f"policy: at most {100 * rate:g} %", "xref": "paper", "x": 1, "xanchor": "right"}
        names.append(shared | across | {"y": rate, "yanchor": "bottom"})
    if (worst := limits.worst_utility) is not None:
        up = {"text": "policy", "yref": "paper", "y": 1, "yanchor": "top", "x": worst, "xanchor": "left"}
        names.append(shared | up)
    return names


def _hover(point: ArmPoint) -> str:
    utility, harm = point.utility_interval, point.harmful_interval
    return "<br>".join(
        (
            f"<b>{plain(point.name)}</b>",
            f"utility {point.utility:.4g}"
            + (f" ({utility.low:.4g} to {utility.high:.4g})" if utility else ""),
            f"harmful rate {point.harmful_rate:.1%}"
            + (f" ({harm.low:.1%} to {harm.high:.1%})" if harm else ""),
        )
    )
