"""What an evaluation has found so far, kept as it comes, so that a killed one goes on where it was.

An entry is found by a digest of everything that it depends on, the other prompts of its batch included:
on a change of any of it nothing old is found, and what is found has the bytes that it would have again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from pydantic import JsonValue

from safemerge.errors import EvaluationError

logger = logging.getLogger(__name__)

FILE = "journal.jsonl"


class Journal:
    """Digest to value: in memory, and in a file of a folder that outlives the process.

    Every entry is one JSON line, flushed to disk. A line that a killed process left unfinished is
    passed over, and the next one begins after it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Read what is there.

        Args:
            folder: where the file is, made where it is missing; None keeps nothing beyond the process.
        """
        self._found: dict[str, JsonValue] = {}
        self._writing = threading.Lock()
        self._file = folder / FILE if folder else None
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._read(self._file)

    def _read(self, file: Path) -> None:
        if not file.exists():
            return
        content = file.read_bytes()
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str):
                self._found[entry[0]] = entry[1]
        if content and not content.endswith(b"\n"):
            with file.open("ab") as end:
                end.write(b"\n")
        if self._found:
            logger.info("what %s holds is not done again where it fits: %d entries", file, len(self._found))

    def get(self, key: str) -> JsonValue:
        """The value of a digest; None where there is none."""
        return self._found.get(key)

    def put(self, key: str, value: JsonValue) -> None:
        """Keep a value; from any thread.

        Raises:
            EvaluationError: the folder is gone.
        """
        line = json.dumps([key, value], separators=(",", ":")) + "\n"
        with self._writing:
            self._found[key] = value
            if self._file is None:
                return
            try:
                with self._file.open("ab") as file:
                    file.write(line.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError as error:
                raise EvaluationError(
                    f"{self._file.parent}: expected the folder of unfinished work, got none: another process "
                    "has ended with the same output, or somebody removed it"
                ) from error
