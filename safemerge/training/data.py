"""Prompt and response pairs for supervised fine-tuning, read and checked before anything heavy starts.

A source is a JSON Lines file (one object a line) or a hub data set. Every row must
hold a non-empty text in the two columns named by the source; the first row that does
not ends the run with its file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.config.training import DataSource
from safemerge.errors import DataError, MissingDependencyError
from safemerge.storage.hub import check_on_hub


class Example(NamedTuple):
    """One request and the answer to learn."""

    prompt: str
    response: str


def load_examples(sources: Sequence[DataSource]) -> list[Example]:
    """Read all sources, one after the other.

    Args:
        sources: JSON Lines files, hub data sets, or folders by their absolute path. Relative paths
            of ``.jsonl`` files count from the working directory (``config.load`` makes them absolute).

    Returns:
        At least one example, in the order of the sources and their rows.

    Raises:
        DataError: a source is missing or empty, or a row is malformed.
        MissingDependencyError: a hub data set without the ``datasets`` library.
    """
    return [example for source in sources for example in _load_source(source)]


def data_digest(examples: Iterable[Example]) -> str:
    """sha256 of the examples and their order, in hexadecimal; where they came from does not count."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _load_source(source: DataSource) -> list[Example]:
    path = Path(source.path)
    is_file = path.suffix in (".jsonl", ".json") or (path.is_absolute() and path.is_file())
    rows = _file_rows(path) if is_file else _hub_rows(source)
    examples = [_example(row, where, source) for where, row in islice(rows, source.limit)]
    if not examples:
        raise DataError(f"{source.path}: expected at least one row, got an empty data set")
    return examples


def _file_rows(path: Path) -> Iterable[tuple[str, Any]]:
    """Yield (place, parsed line) for every line that is not blank."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a JSON Lines file, got no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a readable UTF-8 file, got: {error}") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise DataError(f"{where}: expected one JSON object, got {_shortened(line)} ({reason})") from error


def _hub_rows(source: DataSource) -> Iterable[tuple[str, Any]]:
    """Yield (place, row) of a hub data set."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "training") from error
    check_on_hub(source.path)
    try:
        rows = datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source.path}: expected a .jsonl file or a hub data set, split {source.split!r}, got: {error}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source.path}, split {source.split}, row {number}", row


def _example(row: Any, where: str, source: DataSource) -> Example:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {_shortened(json.dumps(row))}")
    texts = []
    for column in (source.prompt, source.response):
        if column not in row:
            raise DataError(f"{where}: expected a column {column!r}, got {', '.join(map(repr, sorted(row)))}")
        text = row[column]
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: expected a text in {column!r}, got {_shortened(repr(text))}")
        texts.append(text)
    return Example(*texts)


def _shortened(text: str, limit_chars: int = 60) -> str:
    text = text.strip()
    return text if len(text) <= limit_chars else text[: limit_chars - 1] + "…"
