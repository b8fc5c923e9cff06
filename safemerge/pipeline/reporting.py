"""Draw the release report of a verdict and keep it beside it. What goes wrong here changes no verdict."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safemerge.arms import CANDIDATE
from safemerge.errors import TrackingError
from safemerge.gate import measurement_differences
from safemerge.gate.rendering import escaped
from safemerge.pipeline.context import StepContext, local_file
from safemerge.pipeline.evaluating import EVALUATION
from safemerge.records import (
    MERGE_REPORT_FILE,
    RESPONSES_TABLE,
    Approval,
    ArtifactRef,
    EvaluationReport,
    GateDecision,
    MergeReport,
)
from safemerge.reports.release import RELEASE_REPORT_FILE, ReleaseReport
from safemerge.storage.digests import file_digest
from safemerge.tracking.ledger import REPORT_FOLDER, PipelineRun
from safemerge.tracking.step_run import StepRun

logger = logging.getLogger(__name__)


def store_report(
    context: StepContext,
    run: PipelineRun,
    step_run: StepRun,
    decision: GateDecision,
    reports: Mapping[str, EvaluationReport],
    refs: Mapping[str, ArtifactRef],
    adapter: ArtifactRef,
) -> dict[str, ArtifactRef]:
    """Store the release report on the gate's run, for a block as for a pass.

    Args:
        context: ledger and workspace.
        run: the pipeline run.
        step_run: the gate's own run.
        decision: what the report is about.
        reports: arm to report, as the gate looked at them.
        refs: arm to where its report is stored.
        adapter: the candidate.

    Returns:
        ``report``: the record as JSON, with the pages beside it; nothing where it could not be drawn.
    """
    try:
        return {"report": _store(context, run, step_run, decision, reports, refs, adapter)}
    except Exception:  # the verdict stands, whatever is wrong with a page
        logger.exception("the release report could not be drawn; the verdict stands")
        return {}


def store_signed_report(
    context: StepContext, run: PipelineRun, decision: ArtifactRef, answer: Approval
) -> None:
    """Store the report beside a decision once more, on the pipeline run: with what a person answered.

    The gate's own stays as that person saw it. Where there is none, the log says so.
    """
    from safemerge.release.writing import TRANSCRIPTS_FILE, write_forms

    uri = _report_of(decision)
    try:
        seen = context.ledger.fetch(uri, context.workspace.cache)
        report = ReleaseReport.read(seen / RELEASE_REPORT_FILE).model_copy(update={"answer": answer})
        with tempfile.TemporaryDirectory() as folder:
            write_forms(report, Path(folder))
            shutil.copy(seen / TRANSCRIPTS_FILE, folder)
            context.ledger.keep_signed_report(run, Path(folder))
    except Exception:  # as above
        logger.exception("no release report at %s: none says who signed", uri)


def model_card(context: StepContext, decision: ArtifactRef, answer: Approval | None, *, summary: str) -> str:
    """The model card made of the report beside a decision.

    Where there is none the log says so, and the card has the summary alone: the verdict, and who signed.
    """
    from safemerge.release.card import MARK, card

    uri = f"{_report_of(decision)}/{RELEASE_REPORT_FILE}"
    try:
        report = ReleaseReport.read(context.ledger.fetch(uri, context.workspace.cache))
        return card(report.model_copy(update={"answer": answer}))
    except Exception:  # as above
        logger.exception("no release report at %s: the model card has no figures", uri)
        return f"{MARK}\n\n{escaped(summary)}\n\nThere was no release report to take the figures from.\n"


def _report_of(decision: ArtifactRef) -> str:
    """The folder of the report beside a decision."""
    return f"{decision.folder}/{REPORT_FOLDER}"


def _store(
    context: StepContext,
    run: PipelineRun,
    step_run: StepRun,
    decision: GateDecision,
    reports: Mapping[str, EvaluationReport],
    refs: Mapping[str, ArtifactRef],
    adapter: ArtifactRef,
) -> ArtifactRef:
    from safemerge.release.assembling import release_report
    from safemerge.release.provenance import provenance_of
    from safemerge.release.transcripts import gather, read_rows
    from safemerge.release.writing import write_report

    others = _other_arms(context, run, reports[CANDIDATE], refs)
    shown = {**reports, **{arm: report for arm, (report, _) in others.items()}}
    found = {**refs, **{arm: ref for arm, (_, ref) in others.items()}}
    rows = {}
    for arm, ref in found.items():
        answers = f"{ref.folder}/{RESPONSES_TABLE}"
        rows[arm] = read_rows(context.ledger.fetch(answers, context.workspace.cache))
    runs = {"the pipeline": run.run_id, "the gate": step_run.run_id}
    runs |= {f"the evaluation of {arm}": ref.run_id for arm, ref in found.items()}
    provenance = provenance_of(run.config, runs=runs)
    digests = run.plan.model_digests | run.plan.data_digests
    transcripts = gather(shown, rows)
    report = release_report(
        shown,
        decision,
        run.config.gate,
        provenance.model_copy(update={"digests": digests}),
        merge=_merge_report(context, adapter),
        transcripts=transcripts,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_report(report, transcripts, Path(folder))
        digest = file_digest(Path(folder) / RELEASE_REPORT_FILE)
        stored = step_run.log_folder(Path(folder), REPORT_FOLDER, digest)
    return ArtifactRef(uri=f"{stored.uri}/{RELEASE_REPORT_FILE}", digest=digest)


def _other_arms(
    context: StepContext, run: PipelineRun, candidate: EvaluationReport, refs: Mapping[str, ArtifactRef]
) -> dict[str, tuple[EvaluationReport, ArtifactRef]]:
    """The arms of this run that the gate does not look at and that were measured as the candidate was."""
    known = {ref.uri for ref in refs.values()}
    others = {}
    for label, result in context.ledger.results(run.run_id).items():
        ref = result.outputs.get("report")
        if not label.startswith(EVALUATION) or ref is None or ref.uri in known:
            continue
        arm = label.removeprefix(EVALUATION)
        report = EvaluationReport.read(local_file(context, ref)).model_copy(update={"arm": arm})
        if not any(measurement_differences(candidate, report)):
            others[arm] = report, ref
    return others


def _merge_report(context: StepContext, adapter: ArtifactRef) -> MergeReport | None:
    """How the candidate came about; None where its folder does not tell."""
    try:
        path = context.ledger.fetch(f"{adapter.uri}/{MERGE_REPORT_FILE}", context.workspace.cache)
    except TrackingError:
        return None
    return MergeReport.read(path) if path.exists() else None
