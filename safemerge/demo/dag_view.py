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

from safemerge.demo.live_line import LiveLine

_START = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
_END = re.compile(r"\[DAG TEST\] end task task_id=(\S+)")
_STATE = re.compile(r"Task instance state updated\b.*\bnew_state=(\w+)")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STEP_LINE = re.compile(r"\] (.*?)\s+\[airflow\.task\.operators\.safemerge[^\]]*\] loc=step_process")
"""A line that a step printed, as Airflow's log shows it."""
_PROGRESS = re.compile(r"step \d+/\d+|\d+ of \d+|done in|hashing")
_DONE = "already done in MLflow run"
GATE = "gate"
"""The task that fails where the verdict blocks."""


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
        self._state = "success"

    def follow(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command to its end and return its exit code; Ctrl-C ends it with all its children."""
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
            LiveLine(self.console, "Airflow starts …") as live,
        ):
            try:
                for raw in process.stdout or ():
                    line = _TERMINAL_CODE.sub("", raw)
                    log.write(line)
                    log.flush()
                    self._show(line.rstrip(), live)
                return process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                raise

    def _show(self, line: str, live: LiveLine) -> None:
        if match := _START.search(line):
            self._task, self._started_s = match[1], time.monotonic()
            self._reused, self._state = False, "success"
            live.update(self._task, "")
        elif match := _END.search(line):
            self._close(match[1])
        elif match := _STATE.search(line):
            self._state = match[1]
        elif _DONE in line:
            self._reused = True
        elif "error:" in line:
            self.error = line[line.index("error:") :]
        elif (match := _STEP_LINE.search(line)) and _PROGRESS.search(match[1]):
            live.update(self._task, match[1])

    def _close(self, task: str) -> None:
        took_s = time.monotonic() - self._started_s
        note = "  (done before with the same inputs)" if self._reused else ""
        mark = {"success": "[green]✓[/]", "skipped": "[dim]–[/]"}.get(self._state, "[red]✗[/]")
        if self._state == "skipped":
            note = "  (not needed)"
        elif self._state != "success" and task == GATE:
            note = "  (blocked)"
        self.console.print(f"{mark} {escape(task):32} {took_s:6.0f} s{note}", highlight=False)
