"""Full disks: whatever a library makes of one, told by one error that names the disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safemerge.errors import DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MB = 1_000_000


@contextmanager
def full_disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a full disk makes libraries raise into one error.

    Args:
        folder: where the block writes, besides the folder for temporary files.

    Raises:
        DiskFullError: the block failed for want of room; it names the fuller of the two disks.
    """
    try:
        yield
    except Exception as error:
        free_bytes, full = min((_free_bytes(path), path) for path in (folder, Path(tempfile.gettempdir())))
        # torch's writer of files says neither number nor name of its error.
        if free_bytes > 0 and not any(map(_means_full, _chain(error))):
            raise
        raise DiskFullError(
            f"{full}: expected room to write, got a full disk ({free_bytes // _MB} MB free)"
        ) from error


def check_disk_room(folder: Path, needed_bytes: int) -> None:
    """Check that a disk has room for what is to be written, before the work begins.

    Args:
        folder: Where it is to be written; need not exist yet.
        needed_bytes: How much.

    Raises:
        DiskFullError: there is less.
    """
    free_bytes = _free_bytes(folder)
    if free_bytes < needed_bytes:
        raise DiskFullError(
            f"{folder}: expected {-(-needed_bytes // _MB)} MB of room, got {free_bytes // _MB} MB free"
        )


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _means_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    # Not any error with such a text: the disk of a server is not ours.
    return type(error).__module__.startswith("safetensors") and os.strerror(errno.ENOSPC) in str(error)
