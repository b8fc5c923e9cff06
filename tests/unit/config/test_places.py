"""Keys that say where something lies are known by their marks, in checked configs and in plain data."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import safemerge.config
from safemerge.config.base import Config
from safemerge.config.judges import JudgeConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.places import places, with_places_from, without_places
from safemerge.config.suites import SuiteSpec
from tests.unit.pipelines import PIPELINE, pipeline_config

GUARD = {"kind": "wild_guard", "model": "guards/wild/1"}


def configs() -> dict[str, type[Config]]:
    """Every config model, by name."""
    found: dict[str, type[Config]] = {}
    for module in pkgutil.iter_modules(safemerge.config.__path__, f"{safemerge.config.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, Config):
                found[name] = value
    return found


@pytest.mark.parametrize("name", sorted(configs()))
def test_every_key_whose_text_says_that_it_counts_from_a_folder_has_a_mark(name: str) -> None:
    model = configs()[name]
    for field, said in model.model_json_schema().get("properties", {}).items():
        if any(words in said.get("description", "") for words in ("relative to", "the YAML file's folder")):
            assert list(places(model, {field: "a/b/c"})) or list(places(model, {field: ["a/b/c"]})), field


def test_places_are_found_in_lists_and_in_the_kind_that_data_name() -> None:
    judge = {
        "kind": "ensemble",
        "members": [
            "refusal_phrases",
            GUARD,
            {"kind": "endpoint", "model": "a/b/c", "url": "http://a"},
            {"kind": "oracle"},
            3,
        ],
    }
    assert [key for key, _, _ in places(JudgeConfig, judge)] == [("members", 1, "model")]
    grid = {"tuning": {"grid": {"coefficients": ["a.json", 3, "b.json"]}}, "unknown": {"path": "a"}}
    assert [(key[-1], value) for key, value, _ in places(PipelineConfig, grid)] == [
        (0, "a.json"),
        (2, "b.json"),
    ]


def test_data_that_were_given_stay_as_they_are(tmp_path: Path) -> None:
    given: dict[str, Any] = {"file": "a.jsonl", "dataset": "squad", "resource": "b.jsonl"}
    moved = with_places_from(SuiteSpec, given, tmp_path)
    assert moved == given | {"file": f"{tmp_path}/a.jsonl"}
    assert given["file"] == "a.jsonl"
    assert with_places_from(JudgeConfig, "refusal_phrases", tmp_path) == "refusal_phrases"


@pytest.mark.parametrize(("model", "stays"), [("/guards/wild", False), ("org/wild@v1", True)])
def test_settings_without_places_are_the_same_wherever_things_lie(model: str, stays: bool) -> None:
    evaluation = PIPELINE["evaluation"] | {"judge": GUARD | {"model": model}}
    plain = without_places(pipeline_config(evaluation=evaluation))
    assert ("model" in plain["evaluation"]["judge"]) == stays
    assert not {"aligned_model", "unaligned_model"} & plain.keys()
    assert plain["evaluation"]["suites"][0]["name"] == "harm"
    assert "path" not in plain["evaluation"]["suites"][0]
    assert "include_path" not in plain["evaluation"]["utility"]
    assert "path" not in plain["task_training"]["data"][0]
    assert "coefficients" not in plain["merge"]
