"""Progress is printed now and then where there is no terminal."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from safemerge.demo import live_line
from safemerge.demo.live_line import LiveLine, showing_logs


def test_lines_come_only_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]  # of a machine that was just started
    monkeypatch.setattr(live_line.time, "monotonic", lambda: now_s[0])
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many CI systems do: colours make no terminal of a log
    console = Console(record=True, width=80)
    with LiveLine(console) as line:
        for progress in ("step 1/9", "step 2/9"):
            line.update("train", progress)
        now_s[0] += live_line.PLAIN_INTERVAL_S + 1
        line.update("train", "step 3/9 [x]")
    assert console.export_text() == "    train  step 1/9\n    train  step 3/9 [x]\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_line_in_place() -> None:
    console = Console(file=Terminal(), record=True, width=80)
    with LiveLine(console, "starts") as line:
        line.update("train", "step 1/9")
    assert "    train" not in console.export_text()


def test_what_safemerge_logs_is_shown_and_logging_left_as_it_was() -> None:
    logger = logging.getLogger("safemerge")
    before = (logger.level, logger.propagate, list(logger.handlers))
    console = Console(record=True, width=80, force_terminal=False)
    with showing_logs(console, "aligned model"):
        logging.getLogger("safemerge.training.sft").info("step %d/9", 4)
    assert console.export_text() == "    aligned model  step 4/9\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
