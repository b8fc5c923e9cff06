"""The Pareto picture: which arms are on the front, where they lie, and that names cannot break it."""

from __future__ import annotations

import pytest

from safemerge.plots.pareto import ArmPoint, Limits, Span, front, label_places, pareto_figure, spans
from safemerge.records import Interval


def _arms() -> list[ArmPoint]:
    """As the README's table has them, in log-probability (higher is better)."""
    return [
        ArmPoint("aligned", -2.735, 0.077, Interval(low=-2.8, high=-2.67), Interval(low=0.04, high=0.14)),
        ArmPoint("fine-tuned", -1.883, 0.669),
        ArmPoint("SafeMERGE", -1.917, 0.192, chosen=True),
        ArmPoint("scale", -1.979, 0.046),
        ArmPoint("scale_selected", -1.917, 0.169),
    ]


def test_the_front_is_what_no_arm_beats() -> None:
    assert [arm.name for arm in front(_arms())] == ["scale", "scale_selected", "fine-tuned"]


def test_where_lower_is_better_the_front_and_the_axis_turn_round() -> None:
    losses = [arm._replace(utility=-arm.utility) for arm in _arms()]
    assert [arm.name for arm in front(losses, higher_is_better=False)] == [
        "scale",
        "scale_selected",
        "fine-tuned",
    ]
    _, layout = pareto_figure(losses, higher_is_better=False)
    left, right = layout["xaxis"]["range"]
    assert left > 2.8 > 1.8 > right
    assert "lower is better" in layout["xaxis"]["title"]["text"]


def test_arms_that_are_alike_do_not_beat_each_other() -> None:
    twins = [ArmPoint("a", 1.0, 0.5), ArmPoint("b", 1.0, 0.5)]
    assert front(twins) == twins


def test_every_arm_is_drawn_once_with_its_label_and_intervals() -> None:
    traces, _ = pareto_figure(_arms())
    drawn = {name: trace["name"] for trace in traces if "text" in trace for name in trace["text"]}
    assert drawn == {
        "aligned": "beaten",
        "fine-tuned": "no arm beats it",
        "SafeMERGE": "chosen",
        "scale": "no arm beats it",
        "scale_selected": "no arm beats it",
    }
    beaten = next(trace for trace in traces if trace["name"] == "beaten")
    assert beaten["error_y"]["array"] == pytest.approx([0.063])
    assert beaten["error_x"]["arrayminus"] == pytest.approx([0.065])


def test_the_front_steps_from_arm_to_arm() -> None:
    steps = pareto_figure(_arms()).traces[0]
    assert (steps["x"], steps["line"]["shape"]) == ([-1.979, -1.917, -1.883], "vh")


def test_limits_of_the_policy_are_lines_that_are_in_sight() -> None:
    _, layout = pareto_figure(_arms(), limits=Limits(max_harmful_rate=0.9, worst_utility=-3.5))
    across, up = layout["shapes"]
    assert (across["y0"], up["x0"]) == (0.9, -3.5)
    assert layout["yaxis"]["range"][1] > 0.9
    assert layout["xaxis"]["range"][0] < -3.5
    assert [note["text"] for note in layout["annotations"]] == ["policy: at most 90 %", "policy"]


def test_one_arm_is_a_picture_too() -> None:
    across, up = spans([ArmPoint("only", 0.0, 0.0)], Limits())
    assert across.low < 0 < across.high
    assert up.share(0.0) > 0


def test_labels_of_near_arms_stand_apart() -> None:
    near = [ArmPoint("one of two", 0.5, 0.5), ArmPoint("two of two", 0.5, 0.52)]
    unit = Span(0.0, 1.0)
    assert label_places(near, unit, unit) == ["bottom right", "top right"]


def test_a_label_stays_inside_at_the_right_end() -> None:
    unit = Span(0.0, 1.0)
    assert label_places([ArmPoint("a long name", 0.99, 0.5)], unit, unit) == ["top left"]
    assert label_places([ArmPoint("a long name", 0.01, 0.5)], unit, unit, False) == ["top left"]


def test_names_are_plain_text() -> None:
    traces, _ = pareto_figure([ArmPoint("<a href='//x'>\x1b[1m&", 1.0, 0.5)])
    assert traces[1]["text"] == ["&lt;a href='//x'>\ufffd[1m&amp;"]
    assert "<a" not in traces[1]["hovertext"][0]
