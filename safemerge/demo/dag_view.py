"""A DAG run in the terminal: which task runs, for how long, and its latest line of progress."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

_START = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_END = re.compile(r"\[DAG TEST\] end task task_id=(\S+)")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STEP_LINE = re.compile(r"\] (.*?)\s+\[airflow\.task\.operators\.safemerge[^\]]*\] loc=step_process")
"""A line that a step printed, as Airflow's log shows it."""
_PROGRESS = re.compile(r"step \d+/\d+|\d+ of \d+|done in|hashing")
_DONE = "already done in MLflow run"
_PLAIN_INTERVAL_S = 20.0
"""Where the output is no terminal, a line of progress at most so often."""


class DagView:
    """Runs ``airflow dags test``, keeps its whole log in a file and shows what matters of it.

    Args:
        console: where to show it.
        log_file: receives every line; an earlier run's lines stay.
    """

    def __init__(self, console: Console, log_file: Path) -> None:
        self.console = console
        self.log_file = log_file
        self.error = ""
        """The last error line of a step."""
        self._task = ""
        self._started_s = 0.0
        self._reused = False
        self._failed = False
        self._last_plain_s = 0.0

    def follow(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command to its end and return its exit code; Ctrl-C ends it with all its children."""
        status = (
            self.console.status("Airflow starts …") if self.console.is_terminal else contextlib.nullcontext()
        )
        with (
            subprocess.Popen(
                [sys.executable, "-m", *command],
                env=dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as process,
            self.log_file.open("a", encoding="utf-8") as log,
            status,
        ):
            try:
                for raw in process.stdout or ():
                    line = _TERMINAL_CODE.sub("", raw)
                    log.write(line)
                    log.flush()
                    self._show(line.rstrip(), status)
                return process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                raise

    def _show(self, line: str, status: object) -> None:
        if match := _START.search(line):
            self._task, self._started_s = match[1], time.monotonic()
            self._reused = self._failed = False
            self._update(status, "")
        elif match := _END.search(line):
            self._close(match[1])
        elif _DONE in line:
            self._reused = True
        elif "error:" in line:
            self.error, self._failed = line[line.index("error:") :], True
        elif (match := _STEP_LINE.search(line)) and _PROGRESS.search(match[1]):
            self._update(status, match[1])

    def _update(self, status: object, progress: str) -> None:
        text = f"{self._task}  {progress}".strip()
        update = getattr(status, "update", None)
        if update:
            update(escape(text))
        elif progress and time.monotonic() - self._last_plain_s > _PLAIN_INTERVAL_S:
            self._last_plain_s = time.monotonic()
            self.console.print(f"    {escape(text)}", highlight=False)

    def _close(self, task: str) -> None:
        took_s = time.monotonic() - self._started_s
        note = "  (done before with the same inputs)" if self._reused else ""
        mark = "[red]✗[/]" if self._failed else "[green]✓[/]"
        self.console.print(f"{mark} {escape(task):32} {took_s:6.0f} s{note}", highlight=False)
