"""End the record of a pipeline run that reached no verdict."""

from __future__ import annotations

from safemerge.pipeline.context import StepContext, tidy, without_run
from safemerge.pipeline.request import StepRequest
from safemerge.records import StepResult


def close(context: StepContext, request: StepRequest) -> StepResult:
    """Mark a pipeline run without a verdict as failed; it is taken up again where it is started again."""
    run = context.ledger.pipeline_run(request.opened_run_id)
    context.ledger.leave_unanswered(run)
    abandoned = context.ledger.abandon_pipeline_run(run)
    tidy(context, run)
    return without_run("close", run, verdict_reached=not abandoned)
