from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from safemerge_airflow import step_process
from safemerge_airflow.step_process import StepLog, StepProcess

Run = Callable[..., object]
PATIENCE_S = 60
"""Far more than anything takes on a busy machine, far less than the stand-in would sleep if it were let."""


class Lines(logging.Handler):
    """Keeps what is logged, with the time it came, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.came_s: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.came_s.append(time.monotonic())
        self.records.append(record)

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def wait_for(self, start: str) -> str:
        """The first line that starts so, once it is there."""
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            for text in self.texts:
                if text.startswith(start):
                    return text
            time.sleep(0.02)
        raise AssertionError(f"no line starts with {start!r}: {self.texts}")


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> logging.Logger:
    logger = logging.Logger("step", logging.INFO)
    logger.addHandler(lines)
    return logger


@pytest.fixture
def process(command: tuple[str, str], log: logging.Logger) -> StepProcess:
    return StepProcess(command, log)


def request(**options: object) -> dict[str, object]:
    return {"run_id": "parent", "inputs": {}, "options": options}


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_all_end(pids: list[int]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while any(is_running(pid) for pid in pids) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert [pid for pid in pids if is_running(pid)] == []


def pids_in(text: str) -> list[int]:
    return [int(word) for word in text.split()[1:]]


def test_result_is_returned_and_both_streams_are_logged(process: StepProcess, lines: Lines) -> None:
    outputs = {"adapter": {"uri": "runs:/1/adapter", "digest": "ab"}}
    result = process.run("echo", request(lines=["one", "two"], result={"outputs": outputs}))
    assert result.outputs["adapter"].uri == "runs:/1/adapter"
    assert sorted(lines.texts) == ["one", "to stderr", "two"]


def test_request_reaches_the_step_unchanged(process: StepProcess) -> None:
    sent = {
        "run_id": None,
        "inputs": {"adapter": {"uri": "runs:/1/ö", "digest": "ab"}},
        "options": {"q": 0.5},
    }
    figures = process.run("request", sent).figures
    assert json.loads(str(figures["request"])) == sent
    assert str(figures["argv"]).endswith("--die-with-parent")


def test_lines_are_logged_while_the_step_runs(process: StepProcess, lines: Lines) -> None:
    with pytest.raises(AirflowException, match="ended by signal 15"):
        ended_by_another_thread(process, lines, request())
    (started_s,) = (at_s for at_s, text in zip(lines.came_s, lines.texts, strict=True) if "pids" in text)
    assert time.monotonic() - started_s > 0.2


def ended_by_another_thread(process: StepProcess, lines: Lines, sent: dict[str, object]) -> None:
    def kill() -> None:
        lines.wait_for("pids")
        time.sleep(0.3)
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        process.run("hang", sent)
    finally:
        killer.join()


def test_progress_is_thinned_out_but_its_end_is_shown(process: StepProcess, lines: Lines) -> None:
    process.run("progress", request())
    assert lines.texts == ["0 %", "100 %", "no line end"]


def test_progress_is_shown_again_after_a_while(
    log: logging.Logger, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_process, "PROGRESS_S", 0.0)
    output = StepLog(log)
    output.feed(b"\r10 %\r20")
    output.feed(b" %\r30 %\ndone\r")
    output.feed(b"\nnext\xff\r\nlast")
    output.close()
    assert lines.texts == ["10 %", "20 %", "30 %", "done", "next�", "last"]


@pytest.mark.parametrize("code", [4, 2])
def test_fault_that_a_retry_does_not_mend_fails_the_task(
    process: StepProcess, lines: Lines, code: int
) -> None:
    with pytest.raises(AirflowFailException, match=r"^error: what: expected this, got that$"):
        process.run("fault", request(code=code))
    assert [r.levelname for r in lines.records] == ["INFO", "ERROR", "INFO"]


def test_frame_around_a_message_is_not_the_message(log: logging.Logger) -> None:
    output = StepLog(log)
    output.feed("╭─ Error ─╮\n│ No such command. │\n╰─────╯\n".encode())
    assert output.last == "│ No such command. │"


def test_fault_that_may_pass_is_left_to_retries(process: StepProcess) -> None:
    with pytest.raises(AirflowException, match="exit code 75: error: what: expected") as failure:
        process.run("fault", request(code=75))
    assert not isinstance(failure.value, AirflowFailException)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("crash", "step crash ended with exit code 1: RuntimeError: out of memory"),
        ("silent", "step silent was ended by signal 9: no output"),
        ("no_result", "ended well but left no result: .*expected a step result, got no such file"),
    ],
)
def test_unforeseen_end_is_left_to_retries(process: StepProcess, step: str, message: str) -> None:
    with pytest.raises(AirflowException, match=message) as failure:
        process.run(step, request())
    assert not isinstance(failure.value, AirflowFailException)


def test_what_a_step_leaves_running_ends_with_it(process: StepProcess, lines: Lines) -> None:
    began = time.monotonic()
    process.run("straggler", request())
    assert time.monotonic() - began < PATIENCE_S, "waited for the grandchild's open output"
    assert_all_end(pids_in(lines.wait_for("pids")))


def test_kill_ends_the_whole_group(process: StepProcess, lines: Lines) -> None:
    with pytest.raises(AirflowException, match="signal 15"):
        ended_by_another_thread(process, lines, request())
    assert_all_end(pids_in(lines.wait_for("pids")))
    process.kill()  # of a step that has ended is harmless


def test_kill_ends_a_step_that_ignores_sigterm(
    process: StepProcess, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_process, "GRACE_S", 0.2)
    with pytest.raises(AirflowException, match="signal 9"):
        ended_by_another_thread(process, lines, request(stubborn=True))
    assert_all_end(pids_in(lines.wait_for("pids")))


def test_exception_in_the_task_ends_the_group(process: StepProcess, lines: Lines) -> None:
    class TimedOut(BaseException):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise TimedOut

    def alarm() -> None:
        lines.wait_for("pids")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    watcher = threading.Thread(target=alarm)
    watcher.start()
    try:
        with pytest.raises(TimedOut):
            process.run("hang", request())
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
    assert_all_end(pids_in(lines.wait_for("pids")))


TASK_PROCESS = """
import logging
from safemerge_airflow.step_process import StepProcess
log = logging.Logger("step")
log.addHandler(logging.StreamHandler())
StepProcess({command!r}, log).run("hang", {request!r})
"""


@pytest.mark.parametrize("killed", ["task process", "its supervisor"])
def test_step_ends_when_nobody_watches_it(command: tuple[str, str], tmp_path: Path, killed: str) -> None:
    script = tmp_path / "task_process.py"
    script.write_text(TASK_PROCESS.format(command=command, request=request()), encoding="utf-8")
    task = [sys.executable, str(script)]
    supervisor = [sys.executable, "-c", f"import subprocess; subprocess.run({task!r})"]
    plugins = str(Path(step_process.__file__).resolve().parents[1])
    victim = subprocess.Popen(
        task if killed == "task process" else supervisor,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": plugins},
    )
    assert victim.stderr is not None
    with victim.stderr:
        said = next(line for line in victim.stderr if line.startswith("pids"))
        victim.kill()
        victim.wait()
    assert_all_end(pids_in(said))
