"""Suites: files of prompts that every arm is asked.

A suite is a JSON Lines file; each line is an object with ``id`` and ``prompt``, and
optionally ``category``. Other keys are allowed and ignored.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import DataError
from safemerge.records import SuiteKind


class Prompt(NamedTuple):
    """One request of a suite."""

    id: str
    text: str
    category: str | None = None


class Suite(NamedTuple):
    """Prompts that are asked and judged together."""

    name: str
    kind: SuiteKind
    prompts: tuple[Prompt, ...]

    def digest(self) -> str:
        """sha256 of the prompts asked: their ids, texts and categories, in order."""
        content = json.dumps(self.prompts, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def load_suite(name: str, kind: SuiteKind, path: Path, limit: int | None = None) -> Suite:
    """Read a suite; empty lines are skipped.

    Args:
        name: name in reports and gate rules.
        kind: what a flagged response means.
        path: the JSON Lines file, UTF-8.
        limit: use the first so many prompts; the whole file is checked all the same.

    Raises:
        DataError: the file is missing or empty, or a line (named) is not such an object
            or repeats an id.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: expected a suite of prompts, got {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error}") from error
    lines: dict[str, int] = {}
    prompts = []
    # Only "\n" ends a line of JSON Lines; str.splitlines would also cut at U+2028 within a prompt.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        prompt = _prompt(line, f"{path}, line {number}")
        if prompt.id in lines:
            raise DataError(
                f"{path}, line {number}: expected ids that differ, "
                f"got {prompt.id!r} again (first on line {lines[prompt.id]})"
            )
        lines[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{path}: expected at least one prompt, got an empty suite")
    return Suite(name, kind, tuple(prompts[:limit]))


def _prompt(line: str, where: str) -> Prompt:
    """The prompt on one line.

    Raises:
        DataError: the line is not an object with a usable id and prompt.
    """
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected a JSON object, got malformed JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in ("id", "prompt"):
        if key not in row:
            raise DataError(f"{where}: expected the key {key!r}, got {', '.join(sorted(row)) or 'no key'}")
        if not isinstance(row[key], str) or not row[key].strip():
            raise DataError(f"{where}: expected {key!r} to be a text that is not empty, got {row[key]!r}")
    category = row.get("category")
    if category is not None and not isinstance(category, str):
        raise DataError(f"{where}: expected 'category' to be a text, got {category!r}")
    return Prompt(row["id"], row["prompt"], category)
