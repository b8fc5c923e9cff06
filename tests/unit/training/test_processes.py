"""How many processes may train together, and what is told of one that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from safemerge.errors import ConfigError, NonFiniteError
from safemerge.training.processes import _cause, check_processes, is_main_process, launched_processes


def test_without_a_launcher_any_number_is_started_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert launched_processes() is None
    assert is_main_process()
    check_processes(1)
    check_processes(3)


def test_another_number_than_the_launchers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launched_processes() == 2
    assert not is_main_process()
    check_processes(2)
    with pytest.raises(ConfigError, match="processes: expected 2, as many as the launcher started, got 1"):
        check_processes(1)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_processes(2)
    with pytest.raises(ConfigError, match="processes: expected at most 2, one a visible device, got 3"):
        check_processes(3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two machines of two devices each
    check_processes(4)


def failed(tmp_path: Path, message: str | None, exitcode: int = 1) -> ChildFailedError:
    """As the launcher says it of a process that left this message."""
    file = tmp_path / "error.json"
    if message is not None:
        record = {"message": {"message": message, "extraInfo": {"timestamp": "1"}}}
        file.write_text(json.dumps(record), encoding="utf-8")
    return ChildFailedError("train", {0: ProcessFailure(0, 1, exitcode, str(file))})


def test_an_error_of_ours_is_raised_again(tmp_path: Path) -> None:
    cause = _cause(failed(tmp_path, "NonFiniteError: loss: expected a number, got nan"))
    assert isinstance(cause, NonFiniteError)
    assert str(cause) == "loss: expected a number, got nan"
    assert isinstance(_cause(failed(tmp_path, "OutOfMemoryError: full")), torch.cuda.OutOfMemoryError)


@pytest.mark.parametrize("message", ["ValueError: odd", "EXIT_ERROR: odd", None])
def test_any_other_end_stays_the_launchers(tmp_path: Path, message: str | None) -> None:
    error = failed(tmp_path, message, exitcode=-9)
    assert _cause(error) is error
