"""The machine-local side of a step: its scratch folder, its cache, and what is deleted when.

Everything here may be lost at any time; the record of the pipeline is in MLflow.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

HOME_VARIABLE = "SAFEMERGE_HOME"
SECONDS_A_DAY = 86_400


class Workspace:
    """Folders below ``SAFEMERGE_HOME`` (default ``~/.cache/safemerge``).

    ``work/<label>-<digest>`` holds training checkpoints and unfinished outputs of one
    step, ``cache/`` holds downloaded artifacts.
    """

    def __init__(self, home: Path | None = None) -> None:
        default = Path.home() / ".cache" / "safemerge"
        self.home = home or Path(os.environ.get(HOME_VARIABLE) or default)
        self.cache = self.home / "cache"

    def work(self, label: str, inputs_digest: str) -> Path:
        """The scratch folder of one step; a later attempt at the same inputs gets the same one."""
        folder = self.home / "work" / f"{label}-{inputs_digest[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard(self, folder: Path) -> None:
        """Delete the scratch folder of a step whose outputs are stored."""
        shutil.rmtree(folder, ignore_errors=True)

    def prune(self, checkpoints_days: float, cache_days: float) -> list[Path]:
        """Delete scratch folders and cached downloads untouched for longer than that.

        Returns:
            What was deleted, sorted.
        """
        now_s = time.time()
        deleted = []
        for room, days in (("work", checkpoints_days), ("cache", cache_days)):
            for path in sorted((self.home / room).glob("*")):
                # Other steps of this machine delete what is theirs, and tidy up, at the same time.
                with contextlib.suppress(FileNotFoundError):
                    if now_s - _last_touched_s(path) > days * SECONDS_A_DAY:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                        deleted.append(path)
        return deleted


def _last_touched_s(path: Path) -> float:
    found = [path.stat().st_mtime]
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(FileNotFoundError):
                found.append(Path(folder, name).lstat().st_mtime)
    return max(found)
