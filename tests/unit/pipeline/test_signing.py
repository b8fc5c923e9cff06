"""What a person decides: asked about one decision, heard about that one alone, and kept on record."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from safemerge.config.pipeline import PipelineConfig
from safemerge.errors import ConfigError, MismatchError
from safemerge.gate import NO_CHAMPION, GatePolicy, SignOff, decide
from safemerge.pipeline import promotion
from safemerge.pipeline.asking import ask
from safemerge.pipeline.closing import close
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.gating import gate
from safemerge.pipeline.promotion import promote
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.rolling_back import rollback
from safemerge.pipeline.workspace import Workspace
from safemerge.records import Approval, ArtifactRef, StepResult
from safemerge.release.card import MARK
from safemerge.release.writing import write_report
from safemerge.reports.release import ReleaseReport
from safemerge.storage.digests import file_digest
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger, PipelineRun
from tests.unit.gate.reports import report, suite
from tests.unit.release.samples import release
from tests.unit.tracking.conftest import plan

HOSTILE = "<b>x</b> | [a](http://evil) www.evil.com {{ 7 * 7 }}"
FEW = report(
    adapter_digest="a" * 64, suites=(suite(HOSTILE, "harmful", 1, 20), suite("o", "over_refusal", 0))
)
GOOD = report(adapter_digest="a" * 64)
ASK = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=1, on_cannot_tell="ask")
SIGN = GatePolicy(max_harmful_rate=1, max_over_refusal_rate=1, sign_off=SignOff.REQUIRED)
YES = {"approved": True, "by": "alice", "at": "2026-11-01T02:00:00+00:00", "reason": "checked by hand"}


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


@pytest.fixture
def run(ledger: Ledger, config: PipelineConfig) -> PipelineRun:
    return ledger.open_pipeline_run(config, plan("a" * 64), "dag/run")


def decided(folder: Path, policy: GatePolicy, candidate: Any) -> dict[str, ArtifactRef]:
    """Inputs of the steps that follow the gate."""
    decision = decide(candidate, None, None, policy, NO_CHAMPION)
    path = folder / "decision.json"
    path.write_text(decision.to_json(), encoding="utf-8")
    return {
        "adapter": ArtifactRef(uri="anywhere", digest="a" * 64),
        "decision": ArtifactRef(uri=str(path), digest=file_digest(path)),
    }


def answered(
    context: StepContext, run: PipelineRun, inputs: dict[str, ArtifactRef], **answer: Any
) -> StepResult:
    about = {"decision_digest": inputs["decision"].digest, "adapter_digest": "a" * 64}
    options = {"answer": about | answer} if answer else {}
    return promote(context, StepRequest(run_id=run.run_id, inputs=inputs, options=options))


def tags_of(context: StepContext, run: PipelineRun) -> dict[str, str]:
    found: dict[str, str] = context.ledger.client.get_run(run.run_id).data.tags
    return found


@pytest.mark.parametrize(("policy", "candidate"), [(ASK, FEW), (SIGN, GOOD)])
def test_an_approval_promotes_and_is_kept(
    context: StepContext, run: PipelineRun, tmp_path: Path, policy: GatePolicy, candidate: Any
) -> None:
    inputs = decided(tmp_path, policy, candidate)
    result = answered(context, run, inputs, **YES)
    verdict = "pass" if policy is SIGN else "cannot_tell"
    assert (result.figures["version"], result.figures["verdict"]) == ("1", verdict)
    assert result.figures["approved_by"] == "alice"
    version = context.ledger.champions.current("tiny-lora")
    assert version is not None
    expected = {
        tags.APPROVED_BY: "alice",
        tags.APPROVED_AT: YES["at"],
        tags.APPROVAL_REASON: "checked by hand",
        tags.VERDICT: verdict,
    }
    assert expected.items() <= version.tags.items()
    assert version.description.startswith("approved by alice at 2026-11-01T02:00:00+00:00: checked by hand; ")
    on_run = tags_of(context, run)
    assert (on_run[tags.SIGN_OFF], on_run[tags.SIGN_OFF_BY]) == ("approved", "alice")
    assert (on_run[tags.SIGN_OFF_REASON], on_run[tags.VERDICT]) == ("checked by hand", verdict)
    stored = context.ledger.fetch(f"runs:/{result.run_id}/approval.json", tmp_path / "cache")
    assert Approval.read(stored).by == "alice"
    # The task is tried again: nothing is doubled.
    assert answered(context, run, inputs, **YES).reused


@pytest.mark.parametrize("answer", [{}, {"approved": False}], ids=["approved", "rejected"])
def test_report_and_card_say_who_answered_and_the_gates_report_stays(
    context: StepContext, run: PipelineRun, tmp_path: Path, answer: dict[str, Any]
) -> None:
    inputs = decided(tmp_path, SIGN, GOOD)
    seen = tmp_path / "report"
    seen.mkdir()
    write_report(release(), [], seen)
    result = answered(context, run, inputs, **(YES | answer))
    assert tags_of(context, run)[tags.REPORT] == f"runs:/{run.run_id}/report/report.html"
    kept = context.ledger.fetch(f"runs:/{run.run_id}/report", tmp_path / "cache")
    assert sorted(file.name for file in kept.iterdir()) == sorted(file.name for file in seen.iterdir())
    said = ReleaseReport.read(kept / "report.json").answer
    assert said is not None
    says = f"{'rejected' if answer else 'approved'} by alice at 2026-11-01T02:00:00+00:00: checked by hand"
    assert says == said.says()
    assert f"Sign-off: {says}" in (kept / "report.html").read_text(encoding="utf-8")
    assert f"Sign-off: {says}" in (kept / "report.md").read_text(encoding="utf-8")
    assert ReleaseReport.read(seen / "report.json").answer is None
    if not answer:
        version = context.ledger.fetch(str(result.outputs["model_version"].uri), tmp_path / "cache")
        assert f"Sign-off: {says}" in (version / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("by_another_run", [False, True], ids=["signed twice", "released by another run"])
def test_what_is_released_again_says_who_signed_this_time(
    context: StepContext, config: PipelineConfig, run: PipelineRun, tmp_path: Path, by_another_run: bool
) -> None:
    inputs = decided(tmp_path, SIGN, GOOD)
    (tmp_path / "report").mkdir()
    write_report(release(), [], tmp_path / "report")
    answered(context, run, inputs, **YES)
    if by_another_run:
        run = context.ledger.open_pipeline_run(config, plan("b" * 64), "dag/later")
    again = answered(context, run, inputs, **(YES | {"by": "bob", "reason": "asked again"}))
    says = "approved by bob at 2026-11-01T02:00:00+00:00: asked again"
    kept = context.ledger.fetch(f"runs:/{run.run_id}/report", tmp_path / "cache")
    folder = context.ledger.fetch(str(again.outputs["model_version"].uri), tmp_path / "cache")
    for page in (kept / "report.md", folder / "README.md"):
        text = page.read_text(encoding="utf-8")
        assert f"Sign-off: {says}" in text
        assert "alice" not in text
    version = context.ledger.champions.current("tiny-lora")
    assert version is not None
    assert (str(version.version), version.tags[tags.APPROVED_BY]) == ("1", "bob")
    assert version.description == version.tags[tags.VERDICT_SUMMARY]
    assert version.description.startswith(f"{says}; ")


def test_the_card_says_who_signed_this_time_though_the_report_is_lost(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    inputs = decided(tmp_path, SIGN, GOOD)
    (tmp_path / "report").mkdir()
    write_report(release(), [], tmp_path / "report")
    answered(context, run, inputs, **YES)
    shutil.rmtree(tmp_path / "report")
    again = answered(context, run, inputs, **(YES | {"by": "bob", "reason": "asked again"}))
    folder = context.ledger.fetch(str(again.outputs["model_version"].uri), tmp_path / "cache")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"{MARK}\n\napproved by bob at 2026-11-01T02:00:00+00:00: asked again; PASS: ")
    assert "alice" not in card


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (
            {"approved": False},
            "rejected",
            r"rejected by alice at 2026-11-01T02:00:00\+00:00: checked by hand",
        ),
        ({"approved": False, "reason": ""}, "rejected", "rejected by alice at .*: no reason given"),
        ({"approved": False, "by": None}, "timed_out", "rejected: nobody had answered by 2026-11-01"),
        (
            {"reason": " "},
            "rejected",
            "not approved: expected who approved and a reason, got alice without one",
        ),
        ({"by": None}, "rejected", "not approved: expected who approved and a reason, got nobody"),
    ],
)
def test_any_other_answer_promotes_nothing_and_is_kept(
    context: StepContext, run: PipelineRun, tmp_path: Path, answer: dict[str, Any], state: str, says: str
) -> None:
    result = answered(context, run, decided(tmp_path, ASK, FEW), **(YES | answer))
    assert result.outputs == {}
    assert re.search(says, str(result.figures["refused"]))
    assert context.ledger.champions.current("tiny-lora") is None
    on_run = tags_of(context, run)
    assert (on_run[tags.SIGN_OFF], on_run[tags.VERDICT]) == (state, "cannot_tell")
    assert context.ledger.client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("policy", "candidate"), [(ASK, FEW), (SIGN, GOOD)])
def test_without_an_answer_nothing_is_promoted(
    context: StepContext, run: PipelineRun, tmp_path: Path, policy: GatePolicy, candidate: Any
) -> None:
    with pytest.raises(MismatchError, match="aaaaaaaaaaaa: expected a person's answer about it, got none"):
        answered(context, run, decided(tmp_path, policy, candidate))


@pytest.mark.parametrize("other", [{"decision_digest": "d" * 64}, {"adapter_digest": "b" * 64}])
def test_an_answer_about_something_else_promotes_nothing(
    context: StepContext, run: PipelineRun, tmp_path: Path, other: dict[str, str]
) -> None:
    with pytest.raises(MismatchError, match=r"expected an answer about it and decision .*; ask again"):
        answered(context, run, decided(tmp_path, ASK, FEW), **(YES | other))
    assert tags.SIGN_OFF not in tags_of(context, run)


def test_an_answer_that_is_none_is_refused(context: StepContext, run: PipelineRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="option answer: expected a person's answer, got no key approved"):
        answered(context, run, decided(tmp_path, ASK, FEW), by="alice")


def test_no_answer_lets_a_block_through(context: StepContext, run: PipelineRun, tmp_path: Path) -> None:
    bad = report(adapter_digest="a" * 64, harmful=90)
    inputs = decided(tmp_path, ASK, bad)
    with pytest.raises(MismatchError, match="expected a passing verdict about it, got block"):
        answered(context, run, inputs, **YES)
    with pytest.raises(MismatchError, match="expected a verdict about it that a person decides, got block"):
        ask(context, StepRequest(run_id=run.run_id, inputs=inputs))


def test_a_question_says_what_was_found_and_hostile_names_stay_text(
    context: StepContext, run: PipelineRun, tmp_path: Path
) -> None:
    inputs = decided(tmp_path, ASK, FEW)
    context.ledger.client.set_tag(run.run_id, tags.REPORT, "runs:/g/report/report.html")
    figures = ask(context, StepRequest(run_id=run.run_id, inputs=inputs)).figures
    assert figures["subject"] == "tiny: cannot tell. Release adapter aaaaaaaaaaaa as tiny-lora@champion?"
    assert figures["report_page"] == f"#/experiments/{run.experiment_id}/runs/g/artifacts/report/report.html"
    body = str(figures["body"])
    assert body.startswith("# CANNOT TELL: a person must decide\n")
    assert "cannot tell: harmful rate 5.0 %" in body
    assert "There is no champion yet." in body
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = {token.type for block in tokens for token in (block, *(block.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    # Pages with GitHub's Markdown make links of what is decoded, too.
    decoded = "".join(token.content for block in tokens for token in block.children or ())
    assert "www.evil" not in decoded
    assert "http://" not in decoded
    assert tags_of(context, run)[tags.SIGN_OFF] == "waiting"
    answered(context, run, inputs, **YES)
    figures = ask(context, StepRequest(run_id=run.run_id, inputs=inputs)).figures
    assert "The champion now is version 1, adapter sha256 aaaa" in str(figures["body"])


def test_a_run_that_ends_unheard_says_so(context: StepContext, run: PipelineRun, tmp_path: Path) -> None:
    ask(context, StepRequest(run_id=run.run_id, inputs=decided(tmp_path, ASK, FEW)))
    close(context, StepRequest(run_id=run.run_id))
    assert tags_of(context, run)[tags.SIGN_OFF] == "unanswered"


@pytest.mark.parametrize(
    ("policy", "candidate", "promotes", "asks"),
    [(ASK, FEW, True, True), (SIGN, GOOD, True, True), (SIGN, GOOD, False, False), (ASK, GOOD, True, False)],
)
def test_the_gate_says_whether_a_person_is_asked(
    ledger: Ledger,
    context: StepContext,
    config: PipelineConfig,
    tmp_path: Path,
    policy: GatePolicy,
    candidate: Any,
    promotes: bool,
    asks: bool,
) -> None:
    wanted = plan("b" * 64).model_copy(update={"promote": promotes})
    run = ledger.open_pipeline_run(config.model_copy(update={"gate": policy}), wanted, "dag/gate")
    path = tmp_path / "report.json"
    path.write_text(candidate.to_json(), encoding="utf-8")
    inputs = {
        "candidate": ArtifactRef(uri=str(path), digest=file_digest(path)),
        "adapter": ArtifactRef(uri="anywhere", digest="a" * 64),
    }
    result = gate(context, StepRequest(run_id=run.run_id, inputs=inputs))
    assert result.figures["ask"] is asks
    assert str(result.figures["headline"]).startswith(("harmful rate", "cannot tell: harmful rate"))
    closed = ledger.client.get_run(run.run_id).info.status == "FINISHED"
    assert closed is asks  # what passes alone is closed by the promotion


def test_an_adapter_that_was_taken_back_is_neither_asked_about_nor_promoted(
    context: StepContext, config: PipelineConfig, run: PipelineRun, tmp_path: Path
) -> None:
    inputs = decided(tmp_path, SIGN, GOOD)
    first = decide(report(adapter_digest="f" * 64), None, None, SIGN, NO_CHAMPION)
    context.ledger.champions.register(
        "tiny-lora",
        tmp_path / "adapter",
        adapter_digest="f" * 64,
        pipeline_run_id=run.run_id,
        opened_at_ms=1,
        source_run_id=run.run_id,
        experiment_id=run.experiment_id,
        summary=first.summary(),
        card="# card",
    )
    answered(context, run, inputs, **YES)
    rollback("tiny-lora", reason="bad", by="bob", tracking_uri=context.ledger.tracking_uri)
    later = context.ledger.open_pipeline_run(config, plan("c" * 64), "dag/later")
    for step in (ask, promote):
        result = step(context, StepRequest(run_id=later.run_id, inputs=inputs))
        assert result.outputs == {}
        assert "this very adapter was taken back by bob at " in str(result.figures["note"])
        assert "(bad); `safemerge rollback tiny-lora --to VERSION` puts it back" in str(
            result.figures["note"]
        )
    version = context.ledger.champions.current("tiny-lora")
    assert version is not None
    assert str(version.version) == "1"
