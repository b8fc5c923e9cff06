"""Let the gate decide, and keep its verdict where people and deployments look."""

from __future__ import annotations

from collections.abc import Mapping

from safemerge.gate import decide
from safemerge.pipeline.context import StepContext, already_done, inputs_digest, local_file
from safemerge.pipeline.merging import CANDIDATE
from safemerge.pipeline.request import StepRequest
from safemerge.records import ArtifactRef, EvaluationReport, StepResult
from safemerge.tracking import tags
from safemerge.tracking.ledger import PipelineRun


def gate(context: StepContext, request: StepRequest) -> StepResult:
    """Judge the candidate's report by the pipeline's policy.

    A report that is missing is not an error here: the rules that need it cannot be
    judged, and that blocks.

    Inputs:
        candidate: report of the adapter that may be released.
        aligned, fine_tuned: reports that utility is compared with.
        adapter: the candidate itself.

    Outputs:
        decision: the verdict as JSON.
    """
    run = context.ledger.pipeline_run(request.run_id or "")
    reports = {"candidate": request.input("candidate")} | {
        name: request.inputs[name] for name in ("aligned", "fine_tuned") if name in request.inputs
    }
    adapter = request.input("adapter")
    digest = inputs_digest(
        "gate",
        ("numpy",),
        policy=run.config.gate.model_dump(mode="json"),
        adapter=adapter.digest,
        given=run.plan.adapter is not None,
        reports={name: ref.digest for name, ref in reports.items()},
    )
    result = already_done(context, run, "gate", digest, "gate") or _judge(context, run, digest, reports)
    if result.figures["passed"] is not True:
        summary = str(result.figures["summary"])
        context.ledger.close_pipeline_run(run, passed=False, summary=summary, gate_run_id=result.run_id)
    return result


def _judge(
    context: StepContext, run: PipelineRun, digest: str, reports: Mapping[str, ArtifactRef]
) -> StepResult:
    names = {"candidate": CANDIDATE if run.plan.adapter is None else "adapter"}
    loaded = {name: _read_report(context, ref, names.get(name, name)) for name, ref in reports.items()}
    decision = decide(loaded["candidate"], loaded.get("aligned"), loaded.get("fine_tuned"), run.config.gate)
    with context.ledger.step_run(run, "gate", digest) as step_run:
        step_run.log_params(run.config.gate.model_dump(mode="json"))
        step_run.log_table([rule.model_dump(mode="json") for rule in decision.rules], "rules.json")
        step_run.log_metrics({f"{rule.rule}.{rule.subject}": rule.figure for rule in decision.rules})
        verdict = "pass" if decision.passed else "block"
        step_run.set_tags({tags.VERDICT: verdict, tags.VERDICT_SUMMARY: decision.summary()})
        stored = step_run.log_text(decision.to_json(), "decision.json")
        return step_run.finish(
            {"decision": stored}, {"passed": decision.passed, "summary": decision.summary()}
        )


def _read_report(context: StepContext, ref: ArtifactRef, arm: str) -> EvaluationReport:
    """A report under its name in this run; the run that measured it may have called it otherwise."""
    report = EvaluationReport.read(local_file(context, ref))
    return report.model_copy(update={"arm": arm})
