"""Pictures of the report: where marks, cells and bars lie."""

from __future__ import annotations

import pytest

from safemerge.gate import GatePolicy
from safemerge.plots.pareto import Span
from safemerge.release import drawing
from safemerge.release.drawing import category_bars, heats, layer_rows, paretos, ticks
from tests.unit.release.samples import evaluation, merge, release, reports


@pytest.mark.parametrize("frame", [drawing.WIDE, drawing.NARROW])
def test_every_arm_has_a_mark_within_the_plot(frame: drawing.Frame) -> None:
    (picture,) = paretos(release(), frame)
    titles = [mark.title for mark in picture.marks]
    labels = [mark.label for mark in picture.marks]
    assert labels == (["1", "2", "3", "4", "5"] if frame.numbered else titles)
    assert [(mark.title, mark.state) for mark in picture.marks] == [
        ("aligned model", "beaten"),
        ("fine-tuned, unrepaired", "front"),
        ("SafeMERGE", "chosen"),
        ("control: all layers scaled", "front"),
        ("control: same layers scaled", "front"),
    ]
    for mark in picture.marks:
        assert frame.left <= mark.left <= mark.x <= mark.right <= frame.right
        # Places are rounded to a tenth of a pixel.
        assert frame.top <= mark.high <= mark.y <= mark.low <= frame.bottom + 0.1
    assert picture.front[0] == "control: all layers scaled"
    assert picture.front[-1] == "fine-tuned, unrepaired"
    assert picture.steps.count("V") == len(picture.front) - 1
    assert picture.limit_x_text == "policy: 90 % of the gain kept (0.58)"
    assert picture.limit_y_text == "policy: at most 30 %"


def test_where_lower_is_better_better_is_still_to_the_right() -> None:
    def turned(arm: str):
        utility = evaluation(arm).utility
        scores = {key: -score for key, score in utility.scores.items()}
        figures = {"higher_is_better": False, "value": -utility.value, "scores": scores}
        return evaluation(arm, utility=utility.model_copy(update=figures))

    (picture,) = paretos(release({arm: turned(arm) for arm in reports()}))
    marks = {mark.title: mark for mark in picture.marks}
    assert marks["aligned model"].x < marks["SafeMERGE"].x < marks["fine-tuned, unrepaired"].x
    assert picture.limit_x_text == "policy: 90 % of the gain kept (-0.58)"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"min_utility": 0.5}, "policy: at least 0.5"),
        ({"min_utility": 0.5, "min_gain_kept": 0.75}, "policy: 75 % of the gain kept (0.55)"),
        ({"min_utility": 0.57, "min_gain_kept": 0.75}, "policy: at least 0.57"),
        ({}, ""),
    ],
)
def test_the_limit_of_utility_is_told_by_the_rule_that_asks_the_most(
    policy: dict[str, float], said: str
) -> None:
    (picture,) = paretos(
        release(policy=GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate=0.2, **policy))
    )
    assert picture.limit_x_text == said


@pytest.mark.parametrize("gain", [-1, 0, 0.5, 0.9, 2])
def test_the_limit_of_utility_is_told_within_the_picture(gain: float) -> None:
    policy = GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate=0.2, min_gain_kept=gain)
    for frame in (drawing.WIDE, drawing.NARROW):
        (picture,) = paretos(release(policy=policy), frame)
        half = drawing.LETTER_PX * len(picture.limit_x_text) / 2
        # Places are rounded to a tenth of a pixel.
        assert half - 0.1 <= picture.limit_x_text_at <= frame.width - half + 0.1
        if half <= picture.limit_x <= frame.width - half:
            assert picture.limit_x_text_at == picture.limit_x


def test_where_lower_utility_is_better_its_limit_is_a_most() -> None:
    made = release(policy=GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate=0.2, min_utility=0.5))
    utility = made.utility.model_copy(update={"higher_is_better": False})
    (picture,) = paretos(made.model_copy(update={"utility": utility}))
    assert picture.limit_x_text == "policy: at most 0.5"


def test_arms_that_do_not_compare_are_not_drawn_with_the_others() -> None:
    of = reports()
    of["scale"] = evaluation("scale", model_digest="another")
    (picture,) = paretos(release(of))
    assert "control: all layers scaled" not in [mark.title for mark in picture.marks]


def test_without_utility_there_is_no_picture() -> None:
    assert list(paretos(release({arm: evaluation(arm, utility=None) for arm in reports()}))) == []


def test_layers_are_shaded_from_low_to_high_and_outlined_where_merged() -> None:
    (heat,) = heats(merge())
    assert heat.places == ["0", "1", "2", "3", "4"]
    (kind, cells), (_, others) = heat.rows
    assert kind == "q_proj"
    assert [cell.text for cell in cells] == [".20", ".25", ".30", ".35", ".40"]
    assert (cells[0].shade, cells[-1].shade) == (0, drawing.SHADES - 1)
    assert [cell.outlined for cell in cells] == [True, True, True, False, False]
    assert (others[-1].text, others[-1].shade) == ("·", None)
    assert heat.threshold == pytest.approx(0.75)
    assert "model.layers.0.self_attn.q_proj: 0.2000, merged: by its cosine" in cells[0].said


def test_experts_share_a_cell_and_odd_scales_are_drawn() -> None:
    made = merge()
    experts = tuple(
        layer.model_copy(update={"module": f"layers.0.experts.{n}.up", "cosine": 0.5})
        for n, layer in enumerate(made.layers[:3])
    )
    (heat,) = heats(made.model_copy(update={"layers": experts, "threshold": 0.9}))
    assert [cell.said for cell in heat.rows[0][1]] == [
        "layers.0.experts.0.up and 2 more, median: 0.5000, merged: by its cosine"
    ]
    assert heat.threshold is None
    assert [row[1:3] for row in layer_rows(made)] == [["5", "3"], ["5", "3"]]


def test_weights_of_layers_are_drawn_where_each_has_its_own() -> None:
    made = merge()
    layers = tuple(
        layer.model_copy(update={"weights": (1 - number / 10, number / 10)})
        for number, layer in enumerate(made.layers)
    )
    _, task, safety = heats(made.model_copy(update={"layers": layers}))
    assert (task.title, safety.title) == ("Weight of the task adapter", "Weight of the safety adapter")
    assert [cell.text for cell in task.rows[0][1]] == ["1.0", ".80", ".60", ".40", ".20"]
    assert [cell.text for cell in safety.rows[1][1]] == [".10", ".30", ".50", ".70", ".90"]
    assert not any(cell.outlined for cell in task.rows[0][1])


def test_categories_stand_arm_beside_arm() -> None:
    (bars,) = category_bars(release())
    assert len(bars.arms) == 5
    assert [name for name, _ in bars.rows] == ["category 0", "category 1"]
    assert all(len(rates) == 5 for _, rates in bars.rows)


def test_categories_of_arms_that_do_not_compare_are_marked() -> None:
    of = reports()
    of["scale"] = of["scale"].model_copy(update={"model_digest": "another"})
    (bars,) = category_bars(release(of))
    assert [arm for arm in bars.arms if arm.endswith("*")] == ["control: all layers scaled*"]


def test_a_limit_by_suite_is_no_line() -> None:
    made = release(policy=GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate={"ordinary": 0.2}))
    (picture,) = paretos(made)
    assert picture.limit_x is None
    assert picture.limit_y is not None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, -1.7, [-3, -2.8, -2.6, -2.4, -2.2, -2, -1.8]), (0, 7e3, None)],
)
def test_ticks_are_round(low: float, high: float, expected: list[float] | None) -> None:
    found = ticks(Span(low, high))
    assert found == (expected or [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000])
