"""What a step's exit code tells the scheduler."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.cli.step import EXIT_RETRY
from safemerge.errors import DiskFullError, TrackingError
from safemerge.pipeline import steps


@pytest.mark.parametrize("kind", [TrackingError, DiskFullError])
def test_what_a_retry_may_mend_has_an_exit_code_of_its_own(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, request: str) -> None:
        raise kind("/somewhere: expected this,\n got that")

    monkeypatch.setattr(steps, "run_step", fail)
    done = CliRunner().invoke(app, ["step", "gate"])
    assert done.exit_code == EXIT_RETRY == 75
    assert done.stderr == "error: /somewhere: expected this, got that\n"


ENDING = """
import atexit, sys, threading
from safemerge.cli.step import _end_at_once_after

class Library:
    def __del__(self):
        print("taken apart")

library, done = Library(), threading.Event()
_end_at_once_after(done)
atexit.register(print, "told to end")
print("working")
if sys.argv[1] == "well":
    done.set()
    sys.exit()
sys.exit(3)
"""


@pytest.mark.parametrize(
    ("how", "code", "said"), [("well", 0, []), ("badly", 3, ["taken apart"])], ids=["well", "badly"]
)
def test_a_step_that_is_done_ends_without_taking_its_libraries_apart(
    how: str, code: int, said: list[str]
) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING, how], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == ["working", "told to end", *said]
