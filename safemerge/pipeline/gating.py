"""Let the gate decide, and keep its verdict where people and deployments look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safemerge.arms import ALIGNED, CANDIDATE, CHAMPION, FINE_TUNED, SAFEMERGE
from safemerge.gate import NO_CHAMPION, Reference, decide, measurement_differences
from safemerge.pipeline.context import StepContext, already_done, local_file
from safemerge.pipeline.dependencies import inputs_digest, judging
from safemerge.pipeline.evaluating import EVALUATION
from safemerge.pipeline.reporting import store_report
from safemerge.pipeline.request import StepRequest
from safemerge.records import ArtifactRef, EvaluationReport, GateDecision, RuleOutcome, StepResult, Verdict
from safemerge.tracking import tags
from safemerge.tracking.champions import champion_of
from safemerge.tracking.figures import run_figures
from safemerge.tracking.ledger import PipelineRun


def gate(context: StepContext, request: StepRequest) -> StepResult:
    """Judge the candidate's report by the pipeline's policy.

    A report that is missing is not an error here: the rules that need it cannot be
    judged, and that blocks.

    Inputs:
        candidate: report of the adapter that may be released.
        aligned, fine_tuned: reports that it is compared with. The champion's is found on record.
        adapter: the candidate itself.

    Outputs:
        decision: the verdict as JSON. The figure ``ask`` says whether a person decides what follows.
        report: the release report as JSON, with its pages beside it; missing where it could not be
            drawn, which changes no verdict.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    refs = {CANDIDATE: request.input(CANDIDATE)} | {
        name: request.inputs[name] for name in (ALIGNED, FINE_TUNED) if name in request.inputs
    }
    adapter = request.input("adapter")
    names = {CANDIDATE: SAFEMERGE if run.plan.adapter is None else "adapter"}
    reports = {name: _read_report(context, ref, names.get(name, name)) for name, ref in refs.items()}
    champion = NO_CHAMPION
    if run.config.gate.against.champion is not None:
        champion = find_champion(context, run, reports[CANDIDATE])
    digest = inputs_digest(
        "gate",
        judging(run.config, run.plan),
        adapter=adapter.digest,
        reports={name: ref.digest for name, ref in refs.items()},
        champion=_plain(champion),
    )
    result = already_done(context, run, "gate", digest, "gate")
    if result is None:
        decision = decide(
            reports[CANDIDATE],
            reports.get(ALIGNED),
            reports.get(FINE_TUNED),
            run.config.gate,
            champion,
        )
        shown = reports if champion.report is None else {**reports, CHAMPION: champion.report}
        result = _record(context, run, digest, decision, shown, refs, adapter)
    context.ledger.link_report(run, result)
    context.ledger.note_on_pipeline_run(run, tags.FIGURES, run_figures(reports).to_tag())
    verdict, summary = Verdict(str(result.figures["verdict"])), str(result.figures["summary"])
    # Nobody is asked about a run that was told not to promote.
    ask = result.figures["wants_person"] is True and run.plan.promote
    if verdict is not Verdict.PASS or ask:
        context.ledger.close_pipeline_run(run, verdict=verdict, summary=summary, gate_run_id=result.run_id)
    here = {"ask": ask, "report_page": context.ledger.report_page(run)}
    return result.model_copy(update={"figures": result.figures | here})


def find_champion(context: StepContext, run: PipelineRun, candidate: EvaluationReport) -> Reference:
    """The adapter that is released now, with the newest report of it that can be compared.

    Where none can, the newest of all is taken: the rules then say what differs.
    """
    name = run.config.tracking.registered_model
    version = context.ledger.champions.current(name)
    if version is None:
        return NO_CHAMPION
    remedy = (
        f"start the pipeline with adapter=models:/{champion_of(name)} and promote=false, which measures it "
        "as this run measures, and then start this run again"
    )
    digest = version.tags.get(tags.ADAPTER_DIGEST)
    if digest is None:
        problem = f"models:/{name}/{version.version} lacks the tag {tags.ADAPTER_DIGEST}"
        return Reference(None, problem, "promote an adapter by the pipeline")
    found = [_read_report(context, ref, CHAMPION) for ref in _reports_of(context, run, version.tags)]
    if not found:
        problem = f"no evaluation of models:/{name}/{version.version} is on record"
        return Reference(None, problem, remedy)
    alike = (report for report in found if not any(measurement_differences(candidate, report)))
    return Reference(next(alike, found[0]), remedy=remedy)


def _reports_of(context: StepContext, run: PipelineRun, champion: Mapping[str, str]) -> list[ArtifactRef]:
    """Evaluations of the champion, the newest first, and the one that it was promoted for last."""
    refs = list(context.ledger.find_evaluations(run.experiment_id, champion[tags.ADAPTER_DIGEST]))
    if not refs and tags.PIPELINE_RUN in champion:
        # Evaluations did not always name their adapter.
        promoted = context.ledger.results(champion[tags.PIPELINE_RUN]).get(f"{EVALUATION}{SAFEMERGE}")
        refs += [promoted.outputs["report"]] if promoted and "report" in promoted.outputs else []
    return refs


def _plain(champion: Reference) -> dict[str, Any]:
    report = champion.report
    return champion._asdict() | {"report": None if report is None else report.model_dump(mode="json")}


def _record(
    context: StepContext,
    run: PipelineRun,
    digest: str,
    decision: GateDecision,
    reports: Mapping[str, EvaluationReport],
    refs: Mapping[str, ArtifactRef],
    adapter: ArtifactRef,
) -> StepResult:
    with context.ledger.step_run(run, "gate", digest) as step_run:
        step_run.log_params(run.config.gate.model_dump(mode="json"))
        step_run.log_table([_row(rule) for rule in decision.rules], "rules.json")
        step_run.log_metrics({f"{rule.rule}.{rule.subject}": rule.figure for rule in decision.rules})
        step_run.set_tags({tags.VERDICT: decision.verdict, tags.VERDICT_SUMMARY: decision.summary()})
        stored = step_run.log_text(decision.to_json(), "decision.json")
        report = store_report(context, run, step_run, decision, reports, refs, adapter)
        return step_run.finish(
            {"decision": stored, **report},
            {
                "passed": decision.passed,
                "verdict": decision.verdict.value,
                "wants_person": decision.wants_person,
                "summary": decision.summary(),
                "headline": "\n".join(decision.main_figures()),
            },
        )


def _row(rule: RuleOutcome) -> dict[str, Any]:
    interval = rule.interval
    ends = {"low": interval.low if interval else None, "high": interval.high if interval else None}
    return rule.model_dump(mode="json", exclude={"interval"}) | ends


def _read_report(context: StepContext, ref: ArtifactRef, arm: str) -> EvaluationReport:
    """A report under its name in this run; the run that measured it may have called it otherwise."""
    report = EvaluationReport.read(local_file(context, ref))
    return report.model_copy(update={"arm": arm})
