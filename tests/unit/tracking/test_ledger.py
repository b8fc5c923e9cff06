"""Pipeline runs and steps are found again, never doubled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.errors import MismatchError, TrackingError
from safemerge.records import ArtifactRef, Verdict
from safemerge.storage.digests import file_digest
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun, tracking_errors
from tests.unit.tracking.conftest import plan


def children(ledger: Ledger, run: PipelineRun) -> list[str]:
    found = ledger.client.search_runs([run.experiment_id], f"tags.`mlflow.parentRunId` = '{run.run_id}'")
    return [child.info.run_id for child in found]


def parents(ledger: Ledger, run: PipelineRun) -> int:
    return len(ledger.client.search_runs([run.experiment_id], f"tags.`{tags.KIND}` = 'pipeline'"))


def test_same_run_key_finds_the_same_pipeline_run(
    ledger: Ledger, config: PipelineConfig, run: PipelineRun
) -> None:
    again = ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
    assert again.run_id == run.run_id
    assert parents(ledger, run) == 1


def test_unfinished_run_of_the_same_inputs_is_adopted_under_a_new_key(
    ledger: Ledger, config: PipelineConfig, run: PipelineRun
) -> None:
    again = ledger.open_pipeline_run(config, plan("a" * 64), "dag/second")
    assert again.run_id == run.run_id
    assert ledger.find_pipeline_run("e", "dag/second") == run.run_id


@pytest.mark.parametrize("verdict", [None, Verdict.PASS])
def test_a_record_that_cannot_be_filled_is_not_left_running(
    ledger: Ledger, config: PipelineConfig, tmp_path: Path, verdict: Verdict | None
) -> None:
    if verdict:
        judged = ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
        ledger.close_pipeline_run(judged, verdict=verdict, summary="yes", gate_run_id="g")
        (tmp_path / "artifacts").rename(tmp_path / "moved")
    (tmp_path / "artifacts").touch()  # no folder: the artifact store is away
    with pytest.raises(OSError, match="artifacts"):
        ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
    run_id = ledger.find_pipeline_run("e", "dag/first")
    assert run_id is not None
    assert ledger.client.get_run(run_id).info.status == ("FINISHED" if verdict else "FAILED")
    (tmp_path / "artifacts").unlink()
    again = ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
    assert again.run_id == run_id
    assert ledger.client.get_run(run_id).info.status == "RUNNING"


def test_a_run_with_a_verdict_is_not_adopted(
    ledger: Ledger, config: PipelineConfig, run: PipelineRun
) -> None:
    ledger.close_pipeline_run(run, verdict=Verdict.BLOCK, summary="no", gate_run_id="g")
    other = ledger.open_pipeline_run(config, plan("a" * 64), "dag/second")
    assert other.run_id != run.run_id
    closed = ledger.client.get_run(run.run_id)
    assert (closed.info.status, closed.data.tags[tags.VERDICT]) == ("FINISHED", "block")


def test_other_inputs_open_another_run(ledger: Ledger, config: PipelineConfig, run: PipelineRun) -> None:
    other = ledger.open_pipeline_run(config, plan("b" * 64), "dag/second")
    assert other.run_id != run.run_id


def test_pipeline_run_reads_back_from_mlflow_alone(ledger: Ledger, run: PipelineRun) -> None:
    assert Ledger(ledger.tracking_uri).pipeline_run(run.run_id) == run


def test_unknown_pipeline_run_is_named(ledger: Ledger) -> None:
    with pytest.raises(TrackingError, match=r"MLflow run nowhere at sqlite.*expected an open pipeline run"):
        ledger.pipeline_run("nowhere")


def test_a_failed_step_is_taken_up_in_the_same_run(ledger: Ledger, run: PipelineRun) -> None:
    with pytest.raises(RuntimeError), ledger.step_run(run, "train", "d1", "train_task") as first:
        raise RuntimeError
    assert ledger.client.get_run(first.run_id).info.status == "FAILED"
    with ledger.step_run(run, "train", "d1", "train_task") as second:
        second.finish()
    assert second.run_id == first.run_id
    assert children(ledger, run) == [first.run_id]
    assert ledger.client.get_run(first.run_id).info.status == "FINISHED"


def test_a_killed_step_is_not_done_and_is_taken_up(ledger: Ledger, run: PipelineRun) -> None:
    killed = ledger.step_run(run, "train", "d1").__enter__()  # never left, as by SIGKILL
    assert ledger.find_done(run, "train", "d1") is None
    with ledger.step_run(run, "train", "d1") as again:
        again.finish()
    assert again.run_id == killed.run_id
    assert children(ledger, run) == [killed.run_id]


def test_what_is_done_is_found_by_a_later_pipeline_run(
    ledger: Ledger, config: PipelineConfig, run: PipelineRun, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with ledger.step_run(run, "train", "d1", "train_safety") as step:
        done = step.finish({"adapter": step.log_folder(tmp_path / "out", "adapter", "digest")}, {"loss": 0.5})
    ledger.close_pipeline_run(run, verdict=Verdict.PASS, summary="yes", gate_run_id="g")
    later = ledger.open_pipeline_run(config, plan("b" * 64), "dag/second")
    found = ledger.find_done(later, "train", "d1", "train_safety")
    assert found is not None
    assert found == done.model_copy(update={"reused": True})
    assert children(ledger, later) == []
    assert ledger.results(later.run_id) == {"train_safety": done}
    assert ledger.find_output("e", "train", "adapter", "digest") == done.outputs["adapter"]
    assert ledger.find_output("e", "train", "adapter", "other") is None


def test_a_step_whose_artifact_is_gone_is_not_done(ledger: Ledger, run: PipelineRun) -> None:
    with ledger.step_run(run, "train", "d1") as step:
        step.finish({"adapter": ArtifactRef(uri=f"runs:/{step.run_id}/adapter", digest="d")})
    assert ledger.find_done(run, "train", "d1") is None


def test_a_step_with_other_inputs_is_not_done(ledger: Ledger, run: PipelineRun) -> None:
    with ledger.step_run(run, "train", "d1") as step:
        step.finish()
    assert ledger.find_done(run, "train", "d2") is None
    assert ledger.find_done(run, "merge", "d1") is None


def test_fetch_brings_a_folder_once(ledger: Ledger, run: PipelineRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with ledger.step_run(run, "train", "d1") as step:
        ref = step.log_folder(tmp_path / "out", "adapter", "digest")
        text = step.log_text("hello", "note.txt")
    first = ledger.fetch(ref.uri, tmp_path / "cache")
    assert (first / "file").read_text() == "x"
    assert ledger.fetch(ref.uri, tmp_path / "cache") == first
    assert ledger.fetch(text.uri, tmp_path / "cache").read_text() == "hello"
    assert ledger.fetch(str(tmp_path / "out"), tmp_path / "cache") == tmp_path / "out"


def test_fetch_of_nothing_is_one_clear_error_and_leaves_nothing(
    ledger: Ledger, run: PipelineRun, tmp_path: Path
) -> None:
    uri = f"runs:/{run.run_id}/nothing"
    with pytest.raises(TrackingError, match=rf"{uri} at sqlite.*could not be fetched"):
        ledger.fetch(uri, tmp_path / "cache")
    with pytest.raises(TrackingError, match="could not be fetched"):
        ledger.fetch(uri, tmp_path / "cache")


def test_artifacts_of_a_sqlite_ledger_lie_beside_it(ledger: Ledger, run: PipelineRun, tmp_path: Path) -> None:
    experiment = ledger.client.get_experiment(run.experiment_id)
    assert experiment.artifact_location == (tmp_path / "artifacts").as_uri()


def test_deleted_experiment_is_named(ledger: Ledger, config: PipelineConfig, run: PipelineRun) -> None:
    ledger.client.delete_experiment(run.experiment_id)
    with pytest.raises(TrackingError, match=r"experiment 'e' .* expected it active, got deleted"):
        ledger.open_pipeline_run(config, plan("c" * 64), "k")


def test_an_abandoned_run_fails_with_what_it_left_running_and_is_adopted_later(
    ledger: Ledger, config: PipelineConfig, run: PipelineRun
) -> None:
    with ledger.step_run(run, "train", "done") as step:
        step.finish()
    killed = ledger.step_run(run, "train", "killed").__enter__()
    assert ledger.abandon_pipeline_run(run)
    statuses = {run_id: ledger.client.get_run(run_id).info.status for run_id in (run.run_id, killed.run_id)}
    assert statuses == {run.run_id: "FAILED", killed.run_id: "FAILED"}
    assert ledger.client.get_run(step.run_id).info.status == "FINISHED"
    assert ledger.open_pipeline_run(config, plan("a" * 64), "dag/second").run_id == run.run_id
    ledger.close_pipeline_run(run, verdict=Verdict.PASS, summary="yes", gate_run_id="g")
    assert not ledger.abandon_pipeline_run(run)


def test_arms_of_one_digest_have_runs_of_their_own(ledger: Ledger, run: PipelineRun) -> None:
    first = ledger.step_run(run, "evaluate", "d", "evaluate_one").__enter__()
    second = ledger.step_run(run, "evaluate", "d", "evaluate_two").__enter__()
    assert first.run_id != second.run_id


def test_a_damaged_copy_is_fetched_anew_and_a_damaged_original_refused(
    ledger: Ledger, run: PipelineRun, tmp_path: Path
) -> None:
    with ledger.step_run(run, "gate", "d") as step:
        ref = step.log_text("whole", "note.txt")
    copy = ledger.fetch_checked(ref, tmp_path / "cache", file_digest)
    copy.write_text("damaged")
    assert ledger.fetch_checked(ref, tmp_path / "cache", file_digest).read_text() == "whole"
    wrong = ref.model_copy(update={"digest": "0" * 64})
    with pytest.raises(MismatchError, match="expected content of digest 000000000000, got"):
        ledger.fetch_checked(wrong, tmp_path / "cache", file_digest)


def test_what_two_processes_fetch_at_once_is_there_for_both(
    ledger: Ledger, run: PipelineRun, tmp_path: Path
) -> None:
    with ledger.step_run(run, "gate", "d") as step:
        ref = step.log_text("whole", "note.txt")
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: ledger.fetch(ref.uri, tmp_path / "cache"), range(4)))
    assert {path.read_text() for path in paths} == {"whole"}


def test_a_result_in_another_format_does_not_count_as_done(ledger: Ledger, run: PipelineRun) -> None:
    with ledger.step_run(run, "gate", "d") as step:
        step.finish()
    ledger.client.set_tag(step.run_id, tags.RESULT, '{"step": "gate"}')
    assert ledger.find_done(run, "gate", "d") is None


def test_mlflow_errors_name_the_server() -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(TrackingError, match="MLflow at http://there: no"), tracking_errors("http://there"):
        raise MlflowException("no")
    with pytest.raises(KeyError), tracking_errors("http://there"):
        raise KeyError


def test_mlflow_errors_tell_no_password() -> None:
    from mlflow.exceptions import MlflowException

    address = "https://me:sec@ret@there:5000"
    said = "MLflow at https://there:5000: API request to https://there:5000/api/a@b failed"
    with pytest.raises(TrackingError, match=f"^{said}$"), tracking_errors(address):
        raise MlflowException(f"API request to {address}/api/a@b failed")
