"""What a choice among coefficients refers to: names and contents, and no place on a machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safemerge.config.grid import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.training import DataSource
from safemerge.engine import learning, tuning
from safemerge.engine.coefficient_files import folder_digest, with_learned
from safemerge.engine.sweeping import candidates
from safemerge.engine.tuning import merge_sections
from safemerge.errors import ConfigError
from tests.unit.plots.test_coefficients import record


def learned(folder: Path, *harm_weights: float, **changes: Any) -> Path:
    """A folder of records whose weights are all the same."""
    folder.mkdir(parents=True)
    for harm_weight in harm_weights:
        one = record(harm_weight).model_copy(update={"layers": record(1).layers, **changes})
        (folder / f"coefficients_{harm_weight:g}.json").write_text(one.to_json(), encoding="utf-8")
    return folder


def test_candidates_of_equal_weights_are_called_by_their_own_files(tmp_path: Path) -> None:
    grid = with_learned(SweepGrid(quantiles=(0.5,)), learned(tmp_path / "fits", 1, 3))
    sections = merge_sections(grid)
    assert {name: section.get("coefficients") for name, section in sections.items()} == {
        "exact_q0.5_w0.8_0.2": None,
        "learned_1": "coefficients_1.json",
        "learned_3": "coefficients_3.json",
    }
    assert candidates(grid).keys() == sections.keys()
    assert with_learned(grid, None) == grid


def test_a_folder_is_known_by_weights_and_names_and_not_by_what_its_fits_cost(tmp_path: Path) -> None:
    cost = record(1).cost.model_copy(update={"wall_s": 12345.0})
    digest = folder_digest(learned(tmp_path / "a", 1))
    assert folder_digest(learned(tmp_path / "b", 1, cost=cost)) == digest
    assert folder_digest(learned(tmp_path / "c", 3)) != digest


def test_files_and_fits_of_one_harm_weight_are_refused_beforehand(
    pipeline: PipelineConfig, tmp_path: Path
) -> None:
    file = str(learned(tmp_path / "fits", 3) / "coefficients_3.json")
    given = pipeline.tuning.model_copy(
        update={"grid": SweepGrid(coefficients=(file,)), "learning": LearningConfig(harm_weights=(1, 3))}
    )
    with pytest.raises(ConfigError, match=r"expected other λ than those of tuning.grid.coefficients, .*_3"):
        learning.check_fits(pipeline.model_copy(update={"tuning": given}))


def test_an_interrupted_choice_learns_anew_where_data_or_start_have_changed(
    pipeline: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"prompt": "Asked?", "response": "Answered."}
    for name in ("task", "safety", "other"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | {"response": name}) + "\n")

    def on(role: str, file: str, config: PipelineConfig) -> PipelineConfig:
        training = getattr(config, f"{role}_training")
        data = (DataSource(path=str(tmp_path / f"{file}.jsonl")),)
        return config.model_copy(update={f"{role}_training": training.model_copy(update={"data": data})})

    config = on("task", "task", on("safety", "safety", pipeline))
    monkeypatch.setattr(tuning, "adapter_digest", str)
    monkeypatch.setattr(tuning, "resolve", lambda source, *_: source)
    monkeypatch.setattr(learning, "learn_coefficients", lambda *_, output, **__: output.mkdir(parents=True))

    def folder(config: PipelineConfig) -> Path | None:
        return tuning._learned(config, "t", "s", LearningConfig(), "cpu", tmp_path)

    first = folder(config)
    assert folder(config) == first
    merge = config.merge.model_copy(update={"task_weight": 0.7})
    assert first not in {
        folder(on("safety", "other", config)),
        folder(on("task", "other", config)),
        folder(config.model_copy(update={"merge": merge})),
    }
