"""Progress with the time left: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
"""Seconds between log lines where there is no terminal."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a loop is.

    Args:
        label: what is being worked on.
        total: number of items.

    Yields:
        A function to call with the number of items just done.
    """
    if sys.stderr.isatty():
        yield from _bar(label, total)
    else:
        yield from _lines(label, total)


def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(label: str, total: int) -> Iterator[Callable[[int], None]]:
    started = spoken = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, spoken
        done += count
        now = time.monotonic()
        if done < total and now - spoken < LINE_EVERY_S:
            return
        spoken = now
        elapsed_s = now - started
        if done < total:
            logger.info("%s: %d of %d, %.0f s left", label, done, total, elapsed_s / done * (total - done))
        else:
            logger.info("%s: %d done in %.0f s", label, total, elapsed_s)

    yield advance
