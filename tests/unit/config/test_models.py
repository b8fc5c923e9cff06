"""Config models: the merge's mirrors the options of the core, field by field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from safemerge.config.evaluation import EvaluationConfig, SequentialConfig
from safemerge.config.merge import MergeConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.engine.merging import merge_options


def test_a_merge_can_be_configured_with_every_option():
    config = MergeConfig(method="lssf", modules=("a",), components=3, rank=2, seed=5, on_undefined="fail")
    options = merge_options(config)
    assert set(MergeConfig.model_fields) == {field.name for field in dataclasses.fields(options)}
    expected = {name: getattr(config, name) for name in MergeConfig.model_fields}
    assert dataclasses.asdict(options) == expected


def test_defaults_are_those_of_the_core():
    options = merge_options(MergeConfig())
    assert options == type(options)()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0}, "greater than 0"),
        ({"density": 1.1}, "less than or equal to 1"),
        ({"components": 0}, "greater than 0"),
        ({"rank": 0}, "greater than 0"),
        ({"max_error": 1.0}, "less than 1"),
        ({"count": -1}, "greater than or equal to 0"),
        ({"modules": ()}, "at least 1 item"),
        ({"rank": 4, "max_error": 0.1}, "expected one of rank, max_error, got rank and max_error"),
        ({"count": 4, "modules": ("a",)}, "expected one of threshold, .*, got count and modules"),
        ({"method": "cat"}, "expected one of .*, ties, got 'cat'"),
    ],
)
def test_values_out_of_bounds_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        MergeConfig(**given)


EVALUATION = {
    "utility": {"task": "t", "metric": "m"},
    "suites": [
        {"name": "harm", "kind": "harmful", "path": "h.jsonl"},
        {"name": "plain", "kind": "over_refusal", "path": "p.jsonl"},
    ],
}
SERVER = {"url": "http://h/v1", "models": {"aligned": "base"}}
GUARD = {"kind": "wild_guard", "model": "guard"}
ASKED = {"kind": "endpoint", "url": "http://h/v1", "model": "m"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sequential": {"error": -0.01}}, "greater than or equal to 0"),
        ({"sequential": {"error": 0.06}}, "less than or equal to 0.05"),
        (
            {"sequential": {}, "judge": GUARD},
            "judges that load no model here .* for sequential.*got wild_guard",
        ),
        ({"sequential": {}, "refusal_judge": GUARD}, "got wild_guard"),
        (
            {"sequential": {}, "judge": {"kind": "ensemble", "members": [ASKED, GUARD], "rule": "any"}},
            "got wild_guard",
        ),
        ({"engine": "endpoint"}, "expected engine: endpoint and a section endpoint together"),
        ({"endpoint": SERVER}, "expected engine: endpoint and a section endpoint together"),
    ],
)
def test_sequential_and_endpoint_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig.model_validate(EVALUATION | given)


def test_sequential_takes_judges_that_load_nothing():
    ensemble = {"kind": "ensemble", "members": ["refusal_phrases", ASKED], "rule": "any"}
    for judge in ("refusal_phrases", ASKED, ensemble):
        config = EvaluationConfig.model_validate(EVALUATION | {"sequential": {}, "judge": judge})
        assert config.sequential == SequentialConfig(error=0.01, seed=0)
    assert EvaluationConfig.model_validate(EVALUATION | {"engine": "endpoint", "endpoint": SERVER}).endpoint


def test_a_policy_that_pairs_prompts_is_refused_beside_sequential(tiny_pipeline: Any):
    lines = tiny_pipeline.lines
    gate = lines["gate"] | {"against": {"champion": {"max_harmful_increase": 0.1}}}
    stopping = lines["evaluation"] | {"sequential": {}}
    PipelineConfig.model_validate(lines | {"gate": gate})
    PipelineConfig.model_validate(lines | {"evaluation": stopping})
    with pytest.raises(
        ValidationError, match=r"pairs whole suites .* got against\.champion\.max_harmful_inc"
    ):
        PipelineConfig.model_validate(lines | {"gate": gate, "evaluation": stopping})
