"""What is said after Ctrl-C: where a command keeps unfinished work, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def resumable(work: Path) -> Iterator[None]:
    """Let an interrupt of what runs inside say what is kept.

    Args:
        work: folder of unfinished work, which the same command finds again.

    Raises:
        KeyboardInterrupt: with a message, where one without came.
    """
    try:
        yield
    except KeyboardInterrupt:
        kept = work.is_dir() and any(work.iterdir())
        said = (
            f"{work} keeps what was done; the same command goes on from there"
            if kept
            else "nothing was done yet that could be kept; the same command begins anew"
        )
        raise KeyboardInterrupt(said) from None
