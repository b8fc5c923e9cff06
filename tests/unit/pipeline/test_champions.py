"""The champion as the gate and the promotion see it: found on record, never a stale one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.errors import MismatchError
from safemerge.gate import NO_CHAMPION, GatePolicy, Reference, decide
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.gating import find_champion, gate
from safemerge.pipeline.promotion import promote
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, EvaluationReport
from safemerge.storage.digests import file_digest
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun
from tests.unit.gate.reports import report, suite
from tests.unit.tracking.conftest import plan

POLICY = GatePolicy(
    max_harmful_rate=1, max_over_refusal_rate=1, against={"champion": {"max_harmful_increase": 0.1}}
)
CANDIDATE = report(adapter_digest="a" * 64)
CHAMPION = report("safemerge", adapter_digest="c" * 64)


@pytest.fixture
def context(ledger: Ledger, tmp_path: Path) -> StepContext:
    return StepContext(ledger, Workspace(tmp_path / "home"))


@pytest.fixture
def run(ledger: Ledger, config: PipelineConfig) -> PipelineRun:
    return opened(ledger, config, "a" * 64)


def opened(ledger: Ledger, config: PipelineConfig, digest: str) -> PipelineRun:
    return ledger.open_pipeline_run(config.model_copy(update={"gate": POLICY}), plan(digest), f"dag/{digest}")


def released(ledger: Ledger, run: PipelineRun, folder: Path, digest: str = "c" * 64) -> None:
    """Make a champion of an adapter, whatever is in it."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    ledger.champions.register(
        "tiny-lora",
        folder,
        adapter_digest=digest,
        pipeline_run_id=run.run_id,
        opened_at_ms=run.opened_at_ms,
        source_run_id=run.run_id,
        experiment_id=run.experiment_id,
        summary="PASS",
        card="# card",
    )


def evaluated(
    ledger: Ledger, run: PipelineRun, measured: EvaluationReport, key: str, *, names_adapter: bool = True
) -> None:
    """Put an evaluation on record."""
    with ledger.step_run(run, "evaluate", key, "evaluate_safemerge") as step:
        if names_adapter:
            step.set_tags({tags.ADAPTER_DIGEST: str(measured.adapter_digest)})
        step.finish({"report": step.log_text(measured.to_json(), "report.json")}, {})


def stored(folder: Path, name: str, text: str) -> ArtifactRef:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return ArtifactRef(uri=str(path), digest=file_digest(path))


def test_without_a_champion_there_is_none(context: StepContext, run: PipelineRun) -> None:
    assert find_champion(context, run, CANDIDATE) is NO_CHAMPION


def test_a_champion_that_was_never_measured_says_how_to_measure_it(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    released(context.ledger, run, tmp_path / "adapter")
    found = find_champion(context, run, CANDIDATE)
    assert (found.report, found.exists) == (None, True)
    assert found.problem == "no evaluation of models:/tiny-lora/1 is on record"
    assert "start the pipeline with adapter=models:/tiny-lora@champion and promote=false" in found.remedy


def test_a_champion_without_a_digest_cannot_be_looked_up(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    released(context.ledger, run, tmp_path / "adapter")
    context.ledger.client.delete_model_version_tag("tiny-lora", "1", tags.ADAPTER_DIGEST)
    found = find_champion(context, run, CANDIDATE)
    assert found.report is None
    assert found.problem == "models:/tiny-lora/1 lacks the tag safemerge.adapter_digest"


def test_the_report_that_can_be_compared_is_taken_though_a_newer_one_cannot(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    released(context.ledger, run, tmp_path / "adapter")
    evaluated(context.ledger, run, CHAMPION, "1")
    other = CHAMPION.model_copy(update={"suites": (suite("harmful_eval", "harmful", 5, digest="x"),)})
    evaluated(context.ledger, run, other, "2")
    evaluated(context.ledger, run, CANDIDATE, "3")
    found = find_champion(context, run, CANDIDATE).report
    assert found == CHAMPION.model_copy(update={"arm": "champion"})


def test_where_none_can_be_compared_the_rules_say_what_differs(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    released(context.ledger, run, tmp_path / "adapter")
    other = CHAMPION.model_copy(update={"suites": (suite("harmful_eval", "harmful", 5, digest="x"),)})
    evaluated(context.ledger, run, other, "1")
    decision = decide(CANDIDATE, None, None, POLICY, find_champion(context, run, CANDIDATE))
    (rule,) = (rule for rule in decision.rules if rule.rule == "against.champion.max_harmful_increase")
    assert "they differ in suite harmful_eval (prompts); start the pipeline with adapter=" in rule.explanation


def test_an_evaluation_that_names_no_adapter_is_found_by_the_promotion(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    released(context.ledger, run, tmp_path / "adapter")
    evaluated(context.ledger, run, CHAMPION, "1", names_adapter=False)
    found = find_champion(context, run, CANDIDATE).report
    assert found is not None
    assert found.adapter_digest == "c" * 64


def test_the_gate_judges_again_once_there_is_another_champion(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    inputs = {"candidate": stored(tmp_path / "in", "report.json", CANDIDATE.to_json())}
    inputs["adapter"] = ArtifactRef(uri="anywhere", digest="a" * 64)

    def judged() -> Any:
        return gate(context, StepRequest(run_id=run.run_id, inputs=inputs))

    first = judged()
    assert (first.figures["verdict"], judged().reused) == ("pass", True)
    released(context.ledger, run, tmp_path / "adapter")
    blocked = judged()
    assert (blocked.figures["verdict"], blocked.reused) == ("block", False)
    assert "no evaluation of models:/tiny-lora/1 is on record" in blocked.figures["summary"]
    assert context.ledger.client.get_run(run.run_id).data.tags[tags.VERDICT] == "block"
    evaluated(context.ledger, run, CHAMPION, "1")
    assert judged().figures["verdict"] == "pass"


@pytest.mark.parametrize("judged_against", [NO_CHAMPION, Reference(CHAMPION)])
def test_a_verdict_about_a_champion_of_the_past_promotes_nothing(
    context: StepContext, run: PipelineRun, tmp_path: Path, judged_against: Reference
) -> None:
    decision = decide(CANDIDATE, None, None, POLICY, judged_against)
    assert decision.passed
    inputs = {
        "adapter": ArtifactRef(uri=str(tmp_path / "nowhere"), digest="a" * 64),
        "decision": stored(tmp_path / "in", "decision.json", decision.to_json()),
    }
    released(context.ledger, run, tmp_path / "adapter", "d" * 64)
    expected = "cccccccccccc" if judged_against.report else "none"
    with pytest.raises(MismatchError, match=f"compared it with, {expected}, got dddddddddddd; start the run"):
        promote(context, StepRequest(run_id=run.run_id, inputs=inputs))
