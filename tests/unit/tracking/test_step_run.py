"""A retried step leaves the same record as an unbroken one."""

from __future__ import annotations

from safemerge.records import StepResult
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun
from safemerge.tracking.step_run import StepRun


def attempt(ledger: Ledger, run: PipelineRun) -> StepRun:
    """A step that is never left, as when its process is killed."""
    return ledger.step_run(run, "train", "d").__enter__()


def test_a_resumed_training_curve_has_no_point_twice(ledger: Ledger, run: PipelineRun) -> None:
    first = attempt(ledger, run)
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1.0 / step}, step)
    second = attempt(ledger, run)
    for step in (2, 3, 4):
        second.log_metrics({"loss": 1.0 / step, "new": step}, step)
    history = ledger.client.get_metric_history(second.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert [point.step for point in ledger.client.get_metric_history(second.run_id, "new")] == [2, 3, 4]


def test_a_table_is_logged_once(ledger: Ledger, run: PipelineRun) -> None:
    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    attempt(ledger, run).log_table(rows, "t.json")
    again = attempt(ledger, run)
    again.log_table(rows, "t.json")
    import json

    stored = json.loads(ledger._text(again.run_id, "t.json"))
    assert stored == {"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}


def test_parameters_are_flat_and_nulls_left_out(ledger: Ledger, run: PipelineRun) -> None:
    step = attempt(ledger, run)
    params = {"lora": {"r": 8, "none": None}, "long": "x" * 7000, "steps": 3}
    step.log_params(params)
    attempt(ledger, run).log_params(params)
    logged = ledger.client.get_run(step.run_id).data.params
    assert logged == {"lora.r": "8", "steps": "3", "long": "x" * 6000}


def test_missing_figures_are_left_out_not_zero(ledger: Ledger, run: PipelineRun) -> None:
    step = attempt(ledger, run)
    step.log_metrics({"a": None, "b": 2})
    assert ledger.client.get_run(step.run_id).data.metrics == {"b": 2.0}


def test_names_that_come_from_data_are_made_plain(ledger: Ledger, run: PipelineRun) -> None:
    step = attempt(ledger, run)
    step.log_metrics({"rate.a/fraud & «theft»\x1b[31m": 1, "rate.a/../b//c": 2, "..": 3, "x" * 300: 4})
    step.log_params({"limits": {"a\nb": 0.5}})
    stored = ledger.client.get_run(step.run_id).data
    assert stored.metrics == {"rate.a/fraud _ _theft_31m": 1, "rate.a/b/c": 2, "_": 3, "x" * 250: 4}
    assert stored.params == {"limits.a_b": "0.5"}


def test_data_sets_keep_their_whole_digest(ledger: Ledger, run: PipelineRun) -> None:
    step = attempt(ledger, run)
    for _ in range(2):
        step.log_dataset("task", "f" * 64, "train.jsonl")
    stored = ledger.client.get_run(step.run_id)
    assert stored.data.tags["safemerge.dataset.task"] == "f" * 64
    assert [(entry.dataset.name, entry.dataset.digest) for entry in stored.inputs.dataset_inputs] == [
        ("task", "f" * 36)
    ]


def test_the_result_is_on_the_run_when_it_is_finished(ledger: Ledger, run: PipelineRun) -> None:
    with ledger.step_run(run, "gate", "d", "gate") as step:
        result = step.finish({}, {"passed": True, "rate": 0.25})
    stored = ledger.client.get_run(step.run_id)
    assert StepResult.model_validate_json(stored.data.tags[tags.RESULT]) == result
    assert stored.info.status == "FINISHED"
