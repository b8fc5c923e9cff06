"""The steps that choose a merge, called in the DAG's order on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from safemerge.engine import race
from safemerge.errors import ConfigError, DataError, MismatchError
from safemerge.records import ArtifactRef, StepResult
from safemerge.reports.tuning import TuneReport
from safemerge.tracking import tags
from tests.conftest import TinyPipeline
from tests.integration.test_pipeline import Pipeline

pytestmark = pytest.mark.integration


@pytest.fixture
def config(tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(race, "MIN_DOCUMENTS", 2)
    return tuned_config(tiny_pipeline)


def tuned_config(tiny_pipeline: TinyPipeline) -> Path:
    """The tiny pipeline with two candidates, of which one is asked every prompt."""
    folder = tiny_pipeline.config.parent
    asked = [{"id": f"d{i}", "prompt": f"Development question {i}?"} for i in range(4)]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    task = yaml.safe_load((folder / "tasks/tiny_choice.yaml").read_text()) | {"task": "tiny_choice_dev"}
    (folder / "tasks/tiny_choice_dev.yaml").write_text(yaml.safe_dump(task))
    tuning = {
        "suites": [
            {"name": "harm", "kind": "harmful", "path": "dev.jsonl"},
            {"name": "plain", "kind": "over_refusal", "path": "dev.jsonl"},
        ],
        "utility": {"task": "tiny_choice_dev", "metric": "acc", "include_path": "tasks", "limit": 4},
        "grid": {"quantiles": [0.5, 1.0], "weights": [0.7]},
        "max_over_refusal_rate": 1.0,
        "max_utility_loss": 1.0,
        "rungs": [{"prompts": 0.5, "keep": 0.5}],
    }
    path = folder / "tuned.yaml"
    path.write_text(yaml.safe_dump(tiny_pipeline.lines | {"tuning": tuning}))
    return path


def tune(pipeline: Pipeline, config: Path, **options: Any) -> tuple[StepResult, dict[str, ArtifactRef]]:
    """All steps up to the choice; gives it and the adapters."""
    pipeline.run_id = pipeline.step("open", config=str(config), **options).run_id
    adapters = {
        f"{role}_adapter": pipeline.step("train", role=role).outputs["adapter"] for role in ("safety", "task")
    }
    learned = pipeline.step("learn", adapters).outputs
    proposed = pipeline.step("propose", adapters | learned)
    if not proposed.outputs:
        return proposed, adapters
    outputs = dict(proposed.outputs)
    given: dict[str, ArtifactRef] = {"proposal": outputs.pop("proposal")}
    going_on: dict[str, ArtifactRef | None] = {"aligned": None, "fine_tuned": adapters["task_adapter"]}
    going_on |= outputs
    for number in range(4):
        if number:
            going_on = dict(pipeline.step("advance", given, round=number).outputs)
        for name, adapter in going_on.items():
            measured = pipeline.step("tune_evaluate", {"adapter": adapter}, candidate=name, round=number)
            given[f"{number}/{name}"] = measured.outputs["report"]
    return pipeline.step("choose", given), adapters


def test_the_choice_is_what_is_merged_and_is_made_once(tmp_path: Path, config: Path) -> None:
    pipeline = Pipeline(tmp_path)
    chosen, adapters = tune(pipeline, config)
    report = TuneReport.read(pipeline.read(chosen.outputs["choice"]))
    assert chosen.figures["chosen"] == report.chosen == report.candidates[0].name
    # Two candidates asked 2 + 2 prompts, one of them 2 + 2 more.
    assert (report.cost.prompts, report.cost.prompts_in_full) == (12, 16)
    # Both were scored on 2 documents, and the one that was asked everything on all 4.
    assert [candidate.utility_change.n for candidate in report.candidates] == [4, 2]
    merged = pipeline.step("merge", adapters | {"choice": chosen.outputs["choice"]})
    assert merged.outputs["safemerge"].digest == report.candidates[0].adapter_digest
    with pytest.raises(ConfigError, match="step input 'choice': expected an artifact"):
        pipeline.step("merge", adapters)
    before = len(pipeline.runs())
    again, _ = tune(pipeline, config)
    assert again.reused
    assert len(pipeline.runs()) == before
    labels = pipeline.context.ledger.results(str(pipeline.run_id))
    utilities = {
        f"0/{name.removeprefix('tune_0_')}": done.outputs["report"]
        for name, done in labels.items()
        if name.startswith("tune_0_")
    }
    with pytest.raises(ConfigError, match="expected a race that is over, got one that has yet to measure"):
        pipeline.step("choose", {"proposal": labels["propose"].outputs["proposal"]} | utilities)
    # Reports of another adapter, as a cleared run may hand them in, are none of these candidates.
    first, second = sorted(name for name in utilities if name.startswith("0/exact"))
    swapped = utilities | {first: utilities[second], second: utilities[first]}
    with pytest.raises(ConfigError, match=r"yet to measure round 0 of exact_q0.5_w0.7_0.3"):
        pipeline.step("choose", {"proposal": labels["propose"].outputs["proposal"]} | swapped)
    with pytest.raises(ConfigError, match="step input '0/aligned': expected a report, got none"):
        pipeline.step("advance", {"proposal": labels["propose"].outputs["proposal"]}, round=1)
    (config.parent / "dev.jsonl").write_text('{"id": "d0", "prompt": "Another?"}\n')
    with pytest.raises(MismatchError, match="tuning suite harm: expected content of digest"):
        pipeline.step("tune_evaluate", candidate="aligned", round=0)


def test_nothing_is_chosen_where_the_config_or_the_run_asks_for_none(
    tmp_path: Path, config: Path, tiny_pipeline: TinyPipeline
) -> None:
    pipeline = Pipeline(tmp_path)
    plain, _ = tune(pipeline, tiny_pipeline.config)
    named, _ = tune(pipeline, config, overrides={"merge.quantile": 0.25})
    for result in (plain, named):
        assert result.figures == {"note": "the run has no tuning: nothing is to be chosen"}


def learning_config(config: Path, **changes: Any) -> Path:
    """The same config, with two strengths of learned coefficients in place of its candidates."""
    lines = yaml.safe_load(config.read_text())
    learning = {"harm_weights": [0, 5], "steps": 2, "evaluate_every_steps": 1} | changes
    lines["tuning"] |= {"grid": {"methods": ["learned"]}, "learning": learning}
    path = config.with_name("learned.yaml")
    path.write_text(yaml.safe_dump(lines))
    return path


def test_learned_coefficients_are_candidates_and_what_is_merged(tmp_path: Path, config: Path) -> None:
    pipeline = Pipeline(tmp_path)
    chosen, inputs = tune(pipeline, learning_config(config))
    report = TuneReport.read(pipeline.read(chosen.outputs["choice"]))
    assert {candidate.name for candidate in report.candidates} == {"learned_0", "learned_5"}
    with pytest.raises(ConfigError, match="step input 'coefficients': expected an artifact"):
        pipeline.step("merge", inputs | {"choice": chosen.outputs["choice"]})
    merged = pipeline.step("merge", inputs | chosen.outputs)
    assert merged.outputs["safemerge"].digest == report.winner.adapter_digest
    with pytest.raises(ConfigError, match="step input 'coefficients': expected an artifact"):
        pipeline.step("propose", inputs)
    # Another worker, whose home is elsewhere, takes up what was begun: MLflow lets no parameter change.
    for step in ("propose", "merge"):
        for run in pipeline.runs():
            if run.data.tags.get(tags.STEP) == step:
                assert str(tmp_path) not in str(run.data.params.values())
    (learned,) = (run for run in pipeline.runs() if run.data.params.get("harm_weights"))
    assert {"lambda 0/task", "lambda 5/safety", "lambda 5/validation_task"} <= learned.data.metrics.keys()
    # What is learned is bound to these adapters and this data, and is not learned again.
    assert pipeline.step("learn", inputs).reused
    (config.parent / "safety.jsonl").write_text('{"prompt": "Another?", "response": "No."}\n' * 8)
    with pytest.raises(MismatchError, match="safety training data: expected content of digest"):
        pipeline.step("learn", inputs)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"most_task": 0.5}, ConfigError, r"start: expected α in \[0, 0.5\].* merged layers"),
        ({"most_task": 0.7}, ConfigError, r"start: expected α in \[0, 0.7\].* layers that are not merged"),
        ({"harm_weights": [1, 1.0000001]}, ConfigError, "expected harm_weights that differ in six digits"),
        ({"steps": 0}, ConfigError, r"learned.yaml.*tuning.learning.steps"),
    ],
)
def test_what_cannot_be_learned_is_said_before_anything_is_trained(
    tmp_path: Path, config: Path, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Pipeline(tmp_path).step("open", config=str(learning_config(config, **changes)))


def test_training_data_that_a_suite_asks_are_refused_before_anything_is_trained(
    tmp_path: Path, config: Path
) -> None:
    (config.parent / "dev.jsonl").write_text('{"id": "d0", "prompt": "How do I do 3?"}\n')
    with pytest.raises(DataError, match="task data: expected training data that no evaluation suite asks"):
        Pipeline(tmp_path).step("open", config=str(learning_config(config)))
