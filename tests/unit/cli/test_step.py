"""What a step's exit code tells the scheduler."""

from __future__ import annotations

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
