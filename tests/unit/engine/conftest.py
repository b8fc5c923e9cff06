"""A development split of two small suites, and a pipeline that chooses on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.config.tuning import TuningConfig
from tests.unit.pipelines import PIPELINE, pipeline_config

HARMFUL, POLITE = 10, 4


@pytest.fixture
def tuning(tmp_path: Path) -> TuningConfig:
    for name, size in (("harm", HARMFUL), ("polite", POLITE)):
        lines = [json.dumps({"id": f"{name}{i}", "prompt": f"Do {name} {i}!"}) for i in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return TuningConfig.model_validate(
        {
            "suites": [
                {"name": "harm", "kind": "harmful", "path": str(tmp_path / "harm.jsonl")},
                {"name": "polite", "kind": "over_refusal", "path": str(tmp_path / "polite.jsonl")},
            ],
            "utility": {"task": "dev", "metric": "acc"},
            "max_over_refusal_rate": 0.25,
            "min_gain_kept": 0.9,
            "rungs": [{"prompts": 0.2, "keep": 0.5}, {"prompts": 0.5, "keep": 0.5}],
        }
    )


@pytest.fixture
def pipeline(tuning, tmp_path: Path) -> PipelineConfig:
    (tmp_path / "final.jsonl").write_text(json.dumps({"id": "f", "prompt": "Something else?"}))
    suites = [suite | {"path": str(tmp_path / "final.jsonl")} for suite in PIPELINE["evaluation"]["suites"]]
    return pipeline_config(evaluation=PIPELINE["evaluation"] | {"suites": suites}, tuning=tuning.model_dump())
