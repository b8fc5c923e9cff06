"""How commands log: plain lines on stderr, which a scheduler's log can hold too."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def plain_logs() -> None:
    """Log safemerge's own lines, and of other libraries only what users can act upon."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore", FutureWarning)  # notes from libraries to each other
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "filelock", "fsspec", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
