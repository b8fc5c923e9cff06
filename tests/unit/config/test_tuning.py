"""What a tuning section must say before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from safemerge.config.tuning import Rung, TuningConfig
from tests.unit.pipelines import pipeline_config

SUITES = [
    {"name": "harm", "kind": "harmful", "path": "harm.jsonl"},
    {"name": "polite", "kind": "over_refusal", "path": "polite.jsonl"},
]
GOOD = {
    "suites": SUITES,
    "utility": {"task": "dev", "metric": "acc"},
    "max_over_refusal_rate": {"polite": 0.1},
    "min_gain_kept": 0.9,
}


def test_two_rounds_before_the_last_unless_told_otherwise() -> None:
    tuning = TuningConfig.model_validate(GOOD)
    assert tuning.known_grid == tuning.grid
    assert tuning.rungs == (Rung(prompts=0.2, keep=0.4), Rung(prompts=0.5, keep=0.4))
    assert TuningConfig.model_validate(GOOD | {"rungs": []}).rungs == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"suites": [*SUITES, SUITES[0]]}, "expected suites of different names, got twice: harm"),
        ({"suites": SUITES[:1]}, "expected suites of both kinds, got none of kind over_refusal"),
        ({"suites": SUITES[1:]}, "expected suites of both kinds, got none of kind harmful"),
        ({"min_gain_kept": None}, "expected min_gain_kept or max_utility_loss, got neither"),
        (
            {"max_over_refusal_rate": {"harm": 0.1}},
            r"name over_refusal suites of tuning \(polite\), got harm",
        ),
        (
            {"rungs": [{"prompts": 0.5, "keep": 0.5}, {"prompts": 0.5, "keep": 0.5}]},
            r"expected rungs whose share of the prompts rises, got \[0.5, 0.5\]",
        ),
        ({"rungs": [{"prompts": 1.0, "keep": 0.5}]}, "less than 1"),
        ({"rungs": [{"prompts": 0.1 * i, "keep": 0.5} for i in (1, 2, 3)]}, "at most 2 items"),
    ],
)
def test_a_section_that_cannot_choose_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TuningConfig.model_validate(GOOD | change)


def test_the_final_task_is_not_the_one_that_the_choice_sees() -> None:
    evaluation = {"utility": {"task": "final", "metric": "acc"}, "suites": SUITES}
    assert pipeline_config(evaluation=evaluation, tuning=GOOD).tuning == TuningConfig.model_validate(GOOD)
    evaluation = {"utility": {"task": "dev", "metric": "f1"}, "suites": SUITES}
    with pytest.raises(ValidationError, match=r"another task than evaluation.utility, got dev in both"):
        pipeline_config(evaluation=evaluation, tuning=GOOD)


def test_what_is_still_to_be_learned_is_left_out_of_the_grid_that_is_known() -> None:
    grid = {"methods": ["learned", "exact"], "quantiles": [0.5]}
    tuning = TuningConfig.model_validate(GOOD | {"grid": grid, "learning": {"harm_weights": [3]}})
    assert tuning.known_grid.methods == ("exact",)
    assert tuning.known_grid.quantiles == (0.5,)
    assert TuningConfig.model_validate(GOOD | {"grid": grid}).known_grid.methods == ("learned", "exact")
