"""One line of progress: replaced in place on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

PLAIN_INTERVAL_S = 20.0
"""Where the output is no terminal, a line at most so often."""


class LiveLine:
    """Shows what is going on below what is printed.

    Args:
        console: where to show it.
        text: what to show at first.
    """

    def __init__(self, console: Console, text: str = "") -> None:
        self.console = console
        self._status = console.status(text) if console.file.isatty() else None
        self._printed_s = float("-inf")

    def __enter__(self) -> Self:
        """Show it."""
        if self._status:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        if self._status:
            self._status.stop()

    def update(self, task: str, progress: str) -> None:
        """Show a task and how far it is."""
        text = escape(f"{task}  {progress}".strip())
        if self._status:
            self._status.update(text)
        elif progress and time.monotonic() - self._printed_s > PLAIN_INTERVAL_S:
            self._printed_s = time.monotonic()
            self.console.print(f"    {text}", highlight=False, soft_wrap=True)


@contextmanager
def showing_logs(console: Console, task: str) -> Iterator[None]:
    """Show what safemerge logs meanwhile as the progress of a task."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line.update(task, record.getMessage())

    logger, handler = logging.getLogger("safemerge"), Handler(logging.INFO)
    level, propagate = logger.level, logger.propagate
    with LiveLine(console, task) as line:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
