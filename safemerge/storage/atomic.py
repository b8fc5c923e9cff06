"""Outputs that appear whole or not at all: written beside under a hidden name, flushed to disk, renamed.

What a killed process leaves is hidden (``.<name>.partial-…``), and removed when the same
output is written again: a lock, which dies with its process, tells it from one in the making.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safemerge.errors import OutputExistsError


def check_absent(output: Path) -> None:
    """Refuse an output that exists, be it a file, a folder or a dangling link.

    Raises:
        OutputExistsError: it exists.
    """
    if output.exists() or output.is_symlink():
        raise OutputExistsError(f"{output}: expected a path that does not exist yet, got an existing one")


def unfinished(output: Path) -> Path:
    """Where work that a killed command goes on with is kept until its output is there: hidden, beside it.

    >>> unfinished(Path("reports/eval")).as_posix()
    'reports/.eval.unfinished'
    """
    return output.with_name(f".{output.name}.unfinished")


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """A folder to fill that takes the name ``output`` only when the block ends well.

    On an error it is removed.

    Args:
        output: Folder to make. Its parent folders are made where they are missing.

    Yields:
        The folder to write into.

    Raises:
        OutputExistsError: ``output`` exists, at the beginning or by the end.
    """
    check_absent(output)
    _prepare_parent(output)
    new = _new_name(output)
    new.mkdir()
    mode = _mode(new)
    partial, lock = _locked(new, output)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            # safetensors writes files for their owner alone; servers run as somebody else.
            path.chmod(mode if path.is_dir() else mode & 0o666)
            _flush(path)
        check_absent(output)  # a rename would replace an empty folder silently
        try:
            partial.rename(output)
        except OSError:
            check_absent(output)  # made by another process this very moment
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    _flush(output.parent)


@contextmanager
def atomic_file(output: Path, *, replace: bool = False) -> Iterator[Path]:
    """A file to write that takes the name ``output`` only when the block ends well.

    Args:
        output: File to make. Its parent folders are made where they are missing.
        replace: Whether an existing file may be replaced.

    Yields:
        The path to write to.

    Raises:
        OutputExistsError: ``output`` exists and may not be replaced.
    """
    if not replace:
        check_absent(output)
    _prepare_parent(output)
    new = _new_name(output)
    new.touch(exist_ok=False)
    mode = _mode(new)
    partial, lock = _locked(new, output)
    try:
        yield partial
        partial.chmod(mode)
        _flush(partial)
        if not replace:
            check_absent(output)
        partial.rename(output)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)
    _flush(output.parent)


def _new_name(output: Path) -> Path:
    return output.with_name(f".new-{uuid.uuid4().hex}")


def _mode(new: Path) -> int:
    """Who may read and write what was made just now: by it the umask is known without changing it."""
    return stat.S_IMODE(new.stat().st_mode)


def _partial_prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _prepare_parent(output: Path) -> None:
    """Make the parent folder, and remove what a killed process has left of this output."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for partial in output.parent.glob(glob.escape(_partial_prefix(output)) + "*"):
        if not _is_abandoned(partial):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _locked(new: Path, output: Path) -> tuple[Path, int]:
    """Mark an output as being written until the handle is closed, be it by the process's death.

    It takes the name by which abandoned ones are found only once it is locked.
    """
    handle = os.open(new, os.O_RDONLY)
    with suppress(OSError):  # a disk that knows no locks: what is left there is never taken for abandoned
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return new.rename(new.with_name(_partial_prefix(output) + new.name.removeprefix(".new-"))), handle


def _is_abandoned(partial: Path) -> bool:
    try:
        handle = os.open(partial, os.O_RDONLY)
    except FileNotFoundError:  # finished this very moment
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _flush(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
