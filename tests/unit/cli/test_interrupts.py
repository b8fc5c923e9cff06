"""What is said after Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.cli.interrupts import resumable


def test_work_that_is_kept_is_named_with_how_to_go_on(tmp_path: Path) -> None:
    work = tmp_path / ".eval.unfinished"
    work.mkdir()
    (work / "answers.jsonl").touch()
    with pytest.raises(KeyboardInterrupt) as stopped, resumable(work):
        raise KeyboardInterrupt
    assert str(stopped.value) == f"{work} keeps what was done; the same command goes on from there"


@pytest.mark.parametrize("made", [True, False])
def test_nothing_is_promised_where_nothing_is_kept(made: bool, tmp_path: Path) -> None:
    work = tmp_path / "work"
    if made:
        work.mkdir()
    with pytest.raises(KeyboardInterrupt, match="nothing was done yet"), resumable(work):
        raise KeyboardInterrupt


def test_other_ends_are_left_alone(tmp_path: Path) -> None:
    with resumable(tmp_path):
        pass
    with pytest.raises(ZeroDivisionError, match=r"^$"), resumable(tmp_path):
        raise ZeroDivisionError
