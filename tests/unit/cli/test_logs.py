"""Where log lines of commands go."""

from __future__ import annotations

import contextlib
import io
import logging

from safemerge.cli.logs import _Stderr


def test_lines_go_to_what_stderr_is_when_they_are_said() -> None:
    handler = _Stderr()
    # As a progress bar of rich does while it is shown.
    with contextlib.redirect_stderr(io.StringIO()) as bar:
        handler.emit(logging.makeLogRecord({"msg": "step %d", "args": (3,)}))
    assert bar.getvalue() == "step 3\n"
