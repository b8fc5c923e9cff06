"""What every step is given, and what every step does first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import MismatchError
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, StepResult, json_digest
from safemerge.storage.digests import file_digest
from safemerge.tracking.ledger import Ledger, PipelineRun

logger = logging.getLogger(__name__)


class StepContext(NamedTuple):
    """The ledger that all machines share, and the folders of this one."""

    ledger: Ledger
    workspace: Workspace


REVISIONS = {
    "train": 1,
    "learn": 1,
    "propose": 1,
    "tune_evaluate": 1,
    "choose": 1,
    "merge": 1,
    "evaluate": 2,
    "gate": 4,
    "promote": 1,
}
"""Raised when a step's outputs change though its inputs do not. Steps that are missing are not found again by
their inputs: ``open``, ``advance``, ``ask`` and ``close`` are done anew."""


def inputs_digest(step: str, libraries: tuple[str, ...] = (), **parts: Any) -> str:
    """The sha256 of everything that a step's outputs depend on.

    Args:
        step: name of the step.
        libraries: packages whose version may change the outputs, installed or not.
        parts: plain values: settings and the digests of inputs.
    """
    versions = {name: _version(name) for name in libraries}
    return json_digest({"step": step, "revision": REVISIONS[step], "versions": versions, **parts})


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


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
