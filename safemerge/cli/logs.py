"""How commands log: plain lines on stderr, which a scheduler's log can hold too."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def plain_logs() -> None:
    """Log safemerge's own lines, and of other libraries only what users can act upon.

    Of processes that a launcher started together, the main one speaks for all.
    """
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)  # notes from libraries to each other
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "filelock", "fsspec", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
