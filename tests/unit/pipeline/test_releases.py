"""Which of several runs releases an adapter, and when there is nothing to run for."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.errors import MismatchError
from safemerge.gate import NO_CHAMPION, GatePolicy, decide
from safemerge.pipeline import promotion
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.opening import nothing_new
from safemerge.pipeline.promotion import promote
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, StepResult
from safemerge.storage.digests import file_digest
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun
from tests.unit.gate.reports import report
from tests.unit.tracking.conftest import plan

LENIENT = GatePolicy(max_harmful_rate=1, max_over_refusal_rate=1)


@pytest.fixture
def context(ledger: Ledger, tmp_path: Path) -> StepContext:
    return StepContext(ledger, Workspace(tmp_path / "home"))


@pytest.fixture(autouse=True)
def any_adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in an adapter does not matter here."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(promotion, "local_adapter", lambda context, ref: folder)


def opened(ledger: Ledger, config: PipelineConfig, letter: str, at_ms: int, key: str = "") -> PipelineRun:
    """A run of inputs that ``letter`` stands for, opened at a time of our choice."""
    run = ledger.open_pipeline_run(config, plan(letter * 64), key or f"dag/{letter}")
    ledger.client.set_tag(run.run_id, tags.OPENED, str(at_ms))
    return ledger.pipeline_run(run.run_id)


def promoted(context: StepContext, run: PipelineRun, letter: str, folder: Path) -> StepResult:
    """Promote the adapter that ``letter`` stands for."""
    decision = decide(report(adapter_digest=letter * 64), None, None, LENIENT, NO_CHAMPION)
    path = folder / f"{letter}.json"
    path.write_text(decision.to_json(), encoding="utf-8")
    inputs = {
        "adapter": ArtifactRef(uri="anywhere", digest=letter * 64),
        "decision": ArtifactRef(uri=str(path), digest=file_digest(path)),
    }
    return promote(context, StepRequest(run_id=run.run_id, inputs=inputs))


def champion(ledger: Ledger) -> tuple[str, str]:
    """Version and adapter of the champion."""
    version = ledger.champions.current("tiny-lora")
    assert version is not None
    return str(version.version), version.tags[tags.ADAPTER_DIGEST][:1]


def released_in_order(context: StepContext, config: PipelineConfig, tmp_path: Path) -> PipelineRun:
    """Two runs that each released an adapter, a then b; the second of them."""
    first, second = (opened(context.ledger, config, letter, at) for letter, at in (("a", 1000), ("b", 2000)))
    promoted(context, first, "a", tmp_path)
    promoted(context, second, "b", tmp_path)
    return second


def test_a_run_that_a_later_one_has_overtaken_releases_nothing(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    ledger = context.ledger
    early, late = opened(ledger, config, "a", 1000), opened(ledger, config, "b", 2000)
    assert promoted(context, late, "b", tmp_path).figures["verdict"] == "pass"
    result = promoted(context, early, "a", tmp_path)
    assert result.outputs == {}
    assert result.figures["note"] == (
        f"it passed; MLflow run {late.run_id}, which was opened after this one, has released "
        "models:/tiny-lora/1: nothing is promoted"
    )
    assert champion(ledger) == ("1", "b")
    assert ledger.client.get_run(early.run_id).data.tags[tags.VERDICT] == "pass"


def test_runs_in_their_order_each_release(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    released_in_order(context, config, tmp_path)
    assert champion(context.ledger) == ("2", "b")


def test_a_release_that_is_started_again_is_one_though_the_alias_was_moved_by_hand(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    second = released_in_order(context, config, tmp_path)
    assert promoted(context, second, "b", tmp_path).reused
    context.ledger.client.set_registered_model_alias("tiny-lora", "champion", "1")
    again = promoted(context, second, "b", tmp_path)
    assert (again.outputs["model_version"].uri, again.reused) == ("models:/tiny-lora/2", False)
    assert champion(context.ledger) == ("2", "b")


def test_a_release_that_was_taken_back_still_counts(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    runs = {
        letter: opened(context.ledger, config, letter, at) for letter, at in (("a", 1), ("b", 2), ("c", 3))
    }
    promoted(context, runs["a"], "a", tmp_path)
    promoted(context, runs["c"], "c", tmp_path)
    context.ledger.champions.appoint("tiny-lora", "1")
    assert "nothing is promoted" in str(promoted(context, runs["b"], "b", tmp_path).figures["note"])
    assert champion(context.ledger) == ("1", "a")


def test_of_two_releases_at_the_same_moment_the_later_runs_stays(
    context: StepContext, config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = context.ledger
    early, late = opened(ledger, config, "a", 1000), opened(ledger, config, "b", 2000)
    register = ledger.champions.register

    def overtaken(*arguments: object, **named: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(ledger.champions, "register", register)
            promoted(context, late, "b", tmp_path)
        return register(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.champions, "register", overtaken)
        with pytest.raises(MismatchError, match=f"aaaaaaaaaaaa: MLflow run {late.run_id}, which was opened"):
            promoted(context, early, "a", tmp_path)
    assert champion(ledger) == ("1", "b")
    # Started again, it has nothing to do.
    assert promoted(context, early, "a", tmp_path).outputs == {}


@pytest.mark.parametrize("moment", ["register", "create_model_version"])
def test_one_adapter_released_twice_at_the_same_moment_is_one_version_of_the_later_run(
    context: StepContext,
    config: PipelineConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    ledger = context.ledger
    early, late = opened(ledger, config, "a", 1000), opened(ledger, config, "b", 2000)
    owner = ledger.champions if moment == "register" else ledger.client
    call = getattr(owner, moment)

    def overtaken(*arguments: object, **named: object) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(owner, moment, call)
            promoted(context, late, "a", tmp_path)
        return call(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, overtaken)
        with pytest.raises(MismatchError, match=f"MLflow run {late.run_id}, which was opened after this one"):
            promoted(context, early, "a", tmp_path)
    (version,) = ledger.client.search_model_versions("name = 'tiny-lora'")
    assert champion(ledger) == (str(version.version), "a")
    assert ledger.champions.released_after("tiny-lora", 0) == (str(version.version), late.run_id, 2000)


def test_an_adapter_released_again_belongs_to_the_run_that_did(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    first, second, third = (
        opened(context.ledger, config, letter, at) for letter, at in (("a", 1000), ("b", 2000), ("c", 3000))
    )
    promoted(context, first, "a", tmp_path)
    promoted(context, third, "a", tmp_path)
    assert promoted(context, second, "b", tmp_path).outputs == {}
    release = context.ledger.champions.released_after("tiny-lora", 0)
    assert release == ("1", third.run_id, 3000)


def test_going_on_with_a_run_opens_it_no_later_but_taking_it_over_does(
    ledger: Ledger, config: PipelineConfig
) -> None:
    run = opened(ledger, config, "a", 1000, "dag/first")
    again = ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
    assert (again.run_id, again.opened_at_ms) == (run.run_id, 1000)
    assert int(ledger.client.get_run(run.run_id).data.tags[tags.STARTED]) > 1000
    over = ledger.open_pipeline_run(config, plan("a" * 64), "dag/second")
    assert over.run_id == run.run_id
    assert over.opened_at_ms > 1000
    assert ledger.pipeline_run(run.run_id) == over


def test_a_run_whose_record_another_took_over_is_no_newer_for_being_started_again(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    ledger = context.ledger
    opened(ledger, config, "a", 1000, "dag/first")
    over = opened(ledger, config, "a", 2000, "dag/second")
    promoted(context, over, "a", tmp_path)
    promoted(context, opened(ledger, config, "b", 3000, "dag/third"), "b", tmp_path)
    for at_ms, key in ((1000, "dag/first"), (2000, "dag/second")):
        again = ledger.open_pipeline_run(config, plan("a" * 64), key)
        assert again.opened_at_ms == at_ms
        assert "nothing is promoted" in str(promoted(context, again, "a", tmp_path).figures["note"])
    assert champion(ledger) == ("2", "b")
    assert ledger.open_pipeline_run(config, plan("a" * 64), "dag/fourth").opened_at_ms > 3000


def test_a_run_of_an_earlier_release_of_safemerge_was_opened_when_it_was_made(
    ledger: Ledger, config: PipelineConfig
) -> None:
    run = ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")
    ledger.client.delete_tag(run.run_id, tags.OPENED)
    assert ledger.pipeline_run(run.run_id).opened_at_ms == ledger.client.get_run(run.run_id).info.start_time


def test_there_is_nothing_new_where_the_champion_came_of_the_same_inputs(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    assert nothing_new(context, config, plan("a" * 64)) is None
    run = opened(context.ledger, config, "a", 1000)
    assert nothing_new(context, config, run.plan) is None
    promoted(context, run, "a", tmp_path)
    result = nothing_new(context, config, run.plan)
    assert result is not None
    assert (result.run_id, result.outputs) == (run.run_id, {})
    assert result.figures["note"] == (
        "nothing new: models:/tiny-lora/1, the champion, came of the same inputs (digest aaaaaaaaaaaa) in "
        f"MLflow run {run.run_id}; the parameter force runs it all the same"
    )
    assert nothing_new(context, config, plan("b" * 64)) is None


def test_there_is_something_to_do_once_another_is_the_champion(
    context: StepContext, config: PipelineConfig, tmp_path: Path
) -> None:
    run, other = (opened(context.ledger, config, letter, at) for letter, at in (("a", 1000), ("b", 2000)))
    promoted(context, run, "a", tmp_path)
    promoted(context, other, "b", tmp_path)
    assert nothing_new(context, config, run.plan) is None
    assert nothing_new(context, config, other.plan) is not None
