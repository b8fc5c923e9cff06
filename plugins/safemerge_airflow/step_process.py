"""One pipeline step in a process group of its own, its output in the task's log.

Heavy work never runs inside an Airflow task process: a library loaded there stays, CUDA
breaks in forked processes, and a task that is killed would leave its children behind.
Linux only: it relies on ``waitid`` and process groups.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from safemerge.errors import EXIT_ERROR, DataError
from safemerge.records import StepResult

EXIT_USAGE = 2
"""Exit code of the command line after a wrong flag."""
POLL_S = 0.5
"""How soon the end of a step is noticed when something it started keeps the output open, and
how soon the death of the process that watches over the task."""
GRACE_S = 3.0
"""Time between SIGTERM and SIGKILL; Airflow kills the task process itself after 5 s."""
PROGRESS_S = 10.0
"""A progress bar reaches the log at most once in so many seconds."""

_LINE_END = re.compile(rb"[\r\n]")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class StepLog:
    """Writes what a process prints to a log, line by line, and keeps what explains a failure.

    A line that is overwritten in place (a progress bar: its text ends in a carriage return)
    is logged now and then; its last state is logged always.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.error = ""
        """The last line that began with ``error:``."""
        self.last = ""
        """The last line with words."""
        self._log = log
        self._rest = b""
        self._progress = ""
        self._progress_logged_s = float("-inf")

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the output."""
        self._rest += chunk
        while end := _LINE_END.search(self._rest):
            text, self._rest = self._rest[: end.start()], self._rest[end.end() :]
            if end.group() == b"\n":
                self._line(text)
            else:
                self._overwritten(text)

    def close(self) -> None:
        """Log what was left without a line end."""
        self._line(self._rest)
        self._rest = b""

    def _line(self, text: bytes) -> None:
        line = _plain(text) or self._progress
        self._progress = ""
        if not line:
            return
        if any(character.isalnum() for character in line):  # not the frame around a message
            self.last = line
        if line.startswith("error:"):
            self.error = line
            self._log.error("%s", line)
        elif line.startswith("warning:"):
            self._log.warning("%s", line)
        else:
            self._log.info("%s", line)

    def _overwritten(self, text: bytes) -> None:
        self._progress = _plain(text) or self._progress
        now_s = time.monotonic()
        if self._progress and now_s - self._progress_logged_s >= PROGRESS_S:
            self._progress_logged_s = now_s
            self._line(b"")


class StepProcess:
    """Runs ``<command> step <name> …`` and ends everything that it started.

    Args:
        command: how to call safemerge, such as ``(sys.executable, "-m", "safemerge")``.
        log: receives the step's output while it runs.
        environment: what the step's environment holds beside this process's own.
    """

    def __init__(
        self, command: Sequence[str], log: logging.Logger, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = tuple(command)
        self._log = log
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, step: str, request: Mapping[str, Any]) -> StepResult:
        """Run one step to its end.

        Args:
            step: name of the step.
            request: ``run_id``, ``inputs`` and ``options``, as ``safemerge step`` takes them.

        Raises:
            AirflowFailException: the step names a fault that a retry does not mend.
            AirflowException: the step failed otherwise, or was killed.
        """
        with tempfile.TemporaryDirectory(prefix="safemerge-") as folder:
            result = Path(folder) / "result.json"
            arguments = ["step", step, json.dumps(request), "--result", str(result), "--die-with-parent"]
            output = StepLog(self._log)
            code = self._run([*self._command, *arguments], output)
            if code in (EXIT_ERROR, EXIT_USAGE):
                raise AirflowFailException(output.error or output.last or f"exit code {code}")
            if code != 0:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise AirflowException(f"step {step} {how}: {output.error or output.last or 'no output'}")
            try:
                return StepResult.read(result)
            except DataError as error:
                raise AirflowException(f"step {step} ended well but left no result: {error}") from error

    def kill(self) -> None:
        """End the step and all that it started: SIGTERM, then SIGKILL. Safe at any time."""
        self._signal(signal.SIGTERM)
        give_up_s = time.monotonic() + GRACE_S
        while not self._has_ended() and time.monotonic() < give_up_s:
            time.sleep(0.05)
        self._signal(signal.SIGKILL)

    def _run(self, argv: Sequence[str], output: StepLog) -> int:
        """Run a command in its own session; returns its exit code, negative for a signal."""
        self._process = process = subprocess.Popen(
            argv,
            # The step ends itself when this pipe closes, as it does when this process is killed.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | self._environment,
            start_new_session=True,
        )
        try:
            self._stream(process, output)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except BaseException:
            self.kill()
            raise
        finally:
            # The step's process is not reaped yet, so its group id is still ours.
            self._signal(signal.SIGKILL)
            process.wait()
            self._process = None
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            output.close()
        return process.returncode

    def _stream(self, process: subprocess.Popen[bytes], output: StepLog) -> None:
        """Pass the output on until it closes, or nothing more comes after the step's end."""
        if process.stdout is None:  # never so: it was asked for
            return
        supervisor = os.getppid()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if os.getppid() != supervisor:
                    # Nobody sends heartbeats any more: Airflow is about to start the task elsewhere.
                    raise AirflowException("the process that supervised this task died")
                ended = self._has_ended()  # asked first, so that nothing printed before is missed
                if ended:
                    self._signal(signal.SIGKILL)
                if selector.select(0 if ended else POLL_S):
                    chunk = os.read(process.stdout.fileno(), 65536)
                    if not chunk:
                        return
                    output.feed(chunk)
                elif ended:
                    return

    def _has_ended(self) -> bool:
        if self._process is None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT  # look, but leave the process unreaped
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:  # another thread reaped it since
            return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _plain(text: bytes) -> str:
    return _TERMINAL_CODE.sub("", text.decode("utf-8", errors="replace")).rstrip()
