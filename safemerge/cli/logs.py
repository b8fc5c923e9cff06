"""How commands log: plain lines on stderr, which a scheduler's log can hold too."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TextIO


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time: a progress bar stands in for it, and puts lines above itself."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _given: TextIO) -> None:
        """Of the base class, which keeps the stream of its beginning."""


def plain_logs() -> None:
    """Log safemerge's own lines, and of other libraries only what users can act upon.

    Of processes that a launcher started together, the main one speaks for all.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)  # notes from libraries to each other
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[_Stderr()])
    for chatty in ("httpx", "httpx2", "filelock", "fsspec", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
