"""What every step is given, and what every step does first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safemerge.errors import MismatchError
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, StepResult
from safemerge.storage.digests import file_digest
from safemerge.tracking.ledger import Ledger, PipelineRun

logger = logging.getLogger(__name__)


class StepContext(NamedTuple):
    """The ledger that all machines share, and the folders of this one."""

    ledger: Ledger
    workspace: Workspace


def already_done(
    context: StepContext, run: PipelineRun, step: str, digest: str, label: str
) -> StepResult | None:
    """What an earlier run did with the same inputs, said in the log."""
    done = context.ledger.find_done(run, step, digest, label)
    if done is not None:
        logger.info(
            "%s: already done in MLflow run %s with the same inputs; nothing repeated", label, done.run_id
        )
    return done


def without_run(
    step: str,
    run: PipelineRun,
    *,
    outputs: Mapping[str, ArtifactRef] | None = None,
    reused: bool = False,
    **figures: float | str | bool | None,
) -> StepResult:
    """The result of a step that needed no MLflow run of its own, such as one with nothing to do.

    Args:
        step: name of the step.
        run: the pipeline run.
        outputs: what it hands on.
        reused: whether that had been made before.
        figures: what is shown of it; ``note`` says why there was nothing to do.
    """
    return StepResult(
        step=step,
        run_id=run.run_id,
        inputs_digest=run.plan.inputs_digest,
        outputs=dict(outputs or {}),
        figures=figures,
        reused=reused,
    )


def check_unchanged(what: str, expected: str, got: str) -> None:
    """Refuse data that are not those which the pipeline run was opened with.

    Raises:
        MismatchError: the digests differ.
    """
    if got != expected:
        raise MismatchError(
            f"{what}: expected content of digest {expected[:12]}, as when the run was opened, got {got[:12]}"
        )


def local_adapter(context: StepContext, ref: ArtifactRef) -> Path:
    """An adapter folder on this machine, checked by its digest.

    Raises:
        MismatchError: its content is not what the earlier step had written.
    """
    from safemerge.storage.adapters import adapter_digest

    return context.ledger.fetch_checked(ref, context.workspace.cache, adapter_digest)


def local_file(context: StepContext, ref: ArtifactRef) -> Path:
    """A stored text file on this machine, checked by its digest.

    Raises:
        MismatchError: its content is not what the earlier step had written.
    """
    return context.ledger.fetch_checked(ref, context.workspace.cache, file_digest)


def tidy(context: StepContext, run: PipelineRun) -> None:
    """Delete what the pipeline's retention policy lets go on this machine."""
    retention = run.config.retention
    for path in context.workspace.prune(retention.checkpoints_days, retention.cache_days):
        logger.info("deleted %s, which was older than the retention policy keeps", path)
