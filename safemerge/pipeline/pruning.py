"""Delete what is no longer needed on this machine. MLflow's records are never touched."""

from __future__ import annotations

import logging

from safemerge.pipeline.context import StepContext
from safemerge.pipeline.request import StepRequest
from safemerge.records import StepResult

logger = logging.getLogger(__name__)


def prune(context: StepContext, request: StepRequest) -> StepResult:
    """Delete checkpoints and cached downloads older than the pipeline's retention says."""
    run = context.ledger.pipeline_run(request.run_id or "")
    retention = run.config.retention
    deleted = context.workspace.prune(retention.checkpoints_days, retention.cache_days)
    for path in deleted:
        logger.info("deleted %s", path)
    return StepResult(
        step="prune",
        run_id=run.run_id,
        inputs_digest=run.plan.inputs_digest,
        figures={"deleted": len(deleted), "home": str(context.workspace.home)},
    )
