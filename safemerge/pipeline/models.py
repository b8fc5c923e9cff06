"""The models of a pipeline run on this machine, known by the digest of their files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.errors import MismatchError
from safemerge.pipeline.context import StepContext
from safemerge.records import json_digest
from safemerge.storage.atomic import atomic_file
from safemerge.storage.hub import resolve
from safemerge.tracking.ledger import PipelineRun

if TYPE_CHECKING:
    from safemerge.storage.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

MEMO_FILE = "model_digests.json"


def model_digest(checkpoint: Checkpoint, memo_folder: Path) -> str:
    """The sha256 of a checkpoint's files, remembered while no file changes in size or time.

    Args:
        checkpoint: the checkpoint, which may be many gigabytes large.
        memo_folder: where digests of earlier calls are kept.
    """
    stats = {
        str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in checkpoint.files()
    }
    key, memo_file = json_digest(stats), memo_folder / MEMO_FILE
    memo = json.loads(memo_file.read_text(encoding="utf-8")) if memo_file.exists() else {}
    if key not in memo:
        logger.info("hashing %s", checkpoint.folder)
        memo[key] = checkpoint.files_digest()
        with atomic_file(memo_file, replace=True) as partial:
            partial.write_text(json.dumps(memo), encoding="utf-8")
    return str(memo[key])


def local_model(context: StepContext, run: PipelineRun, role: str) -> Path:
    """The folder of the aligned or unaligned model on this machine.

    Args:
        context: the step's context.
        run: the pipeline run.
        role: ``aligned_model`` or ``unaligned_model``.

    Raises:
        MismatchError: this machine has other files under that name than the run was opened with.
    """
    from safemerge.storage.checkpoints import Checkpoint

    source = getattr(run.config, role)
    folder = resolve(source, here=False)
    expected, got = (
        run.plan.model_digests[role],
        model_digest(Checkpoint.open(folder), context.workspace.home),
    )
    if got != expected:
        raise MismatchError(
            f"{role} {source}: expected files of digest {expected[:12]}, got {got[:12]} in {folder}"
        )
    return folder
