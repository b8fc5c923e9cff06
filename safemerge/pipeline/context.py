"""What every step is given, and what every step does first."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import MismatchError
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, StepResult, json_digest
from safemerge.tracking.ledger import Ledger, PipelineRun

logger = logging.getLogger(__name__)


class StepContext(NamedTuple):
    """The ledger that all machines share, and the folders of this one."""

    ledger: Ledger
    workspace: Workspace


def inputs_digest(step: str, libraries: tuple[str, ...] = (), **parts: Any) -> str:
    """The sha256 of everything that a step's outputs depend on.

    Args:
        step: name of the step.
        libraries: packages whose version may change the outputs.
        parts: plain values: settings and the digests of inputs.
    """
    versions = {name: metadata.version(name) for name in ("safemerge", *libraries)}
    return json_digest({"step": step, "versions": versions, **parts})


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


def local_adapter(context: StepContext, ref: ArtifactRef) -> Path:
    """An adapter folder on this machine, checked by its digest.

    Raises:
        MismatchError: its content is not what the earlier step had written.
    """
    from safemerge.storage.adapters import adapter_digest

    folder = context.ledger.fetch(ref.uri, context.workspace.cache)
    got = adapter_digest(folder)
    if got != ref.digest:
        raise MismatchError(f"adapter {ref.uri}: expected digest {ref.digest[:12]}, got {got[:12]}")
    return folder
