"""What decides beside the gate: whether a run may promote at all, and what a person answered."""

from __future__ import annotations

from pydantic import ValidationError

from safemerge.described import first_problem
from safemerge.errors import ConfigError, MismatchError
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.reporting import store_signed_report
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.rolling_back import describe_rollback
from safemerge.records import Approval, GateDecision
from safemerge.tracking.champions import Release
from safemerge.tracking.ledger import PipelineRun


def why_not(context: StepContext, run: PipelineRun, adapter_digest: str) -> str | None:
    """Why this run promotes nothing, whatever gate and people say; None where it may."""
    name = run.config.tracking.registered_model
    if not run.plan.promote:
        return "this run was asked not to promote"
    champions = context.ledger.champions
    if later := champions.released_after(name, run.opened_at_ms):
        return overtaken(name, later)
    if taken_back := champions.withdrawn(name, adapter_digest):
        return f"this very adapter {describe_rollback(name, taken_back)}: nothing is promoted"
    return None


def overtaken(name: str, later: Release) -> str:
    """That a later run released an adapter, which this one leaves in its place."""
    return (
        f"MLflow run {later.run_id}, which was opened after this one, has released "
        f"models:/{name}/{later.version}: nothing is promoted"
    )


def record_answer(
    context: StepContext, run: PipelineRun, request: StepRequest, decision: GateDecision
) -> Approval | None:
    """A person's answer about this very decision, kept on the pipeline run and in its release report.

    None where there is none.

    Raises:
        ConfigError: it cannot be read.
        MismatchError: it is about another decision or adapter.
    """
    given = request.options.get("answer")
    if given is None:
        return None
    try:
        answer = Approval.model_validate(given)
    except ValidationError as error:
        found = first_problem(error, "the answer")
        raise ConfigError(f"option answer: expected a person's answer, got {found}") from error
    decision_digest = request.input("decision").digest
    if (answer.decision_digest, answer.adapter_digest) != (decision_digest, decision.adapter_digest):
        raise MismatchError(
            f"promotion of adapter {str(decision.adapter_digest)[:12]}: expected an answer about it and "
            f"decision {decision_digest[:12]}, got one about adapter {answer.adapter_digest[:12]} and "
            f"decision {answer.decision_digest[:12]}; ask again"
        )
    context.ledger.note_sign_off(run, _state(answer), answer)
    store_signed_report(context, run, request.input("decision"), answer)
    return answer


def _state(answer: Approval) -> str:
    if answer.approved:
        return "approved" if answer.valid else "rejected"
    return "rejected" if answer.by else "timed_out"
