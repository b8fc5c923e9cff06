"""Suites: prompts that every arm is asked, read from a file, a package resource or the hub.

A suite is described by data (:class:`~safemerge.config.suites.SuiteSpec`), or is a JSON Lines
file alone: each line is an object with ``id`` and ``prompt``, and optionally ``category``.
Other keys are allowed and ignored.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.config.load import load_suite_spec
from safemerge.config.suites import PACKAGE, Columns, SuiteSpec, shipped_suite
from safemerge.errors import DataError, MismatchError, MissingDependencyError
from safemerge.gate import SuiteSize
from safemerge.records import SuiteKind
from safemerge.storage.hub import check_on_hub

if TYPE_CHECKING:
    from safemerge.config.evaluation import SuiteConfig

LINE_COLUMNS = Columns(id="id", category="category")
"""Keys of a JSON Lines file that no YAML file describes; the category may be missing."""

Row = tuple[str, int, Mapping[str, Any]]
"""Where a row stands, its number from 1, and what it holds."""


class Prompt(NamedTuple):
    """One request of a suite."""

    id: str
    text: str
    category: str | None = None


class ChatFormat(NamedTuple):
    """How prompts are put into turns of a chat."""

    system_prompt: str | None = None
    template: str | None = None
    """Jinja template in place of the tokenizer's own."""


PLAIN_CHAT = ChatFormat()
"""One turn of the user in the tokenizer's own template."""


class Suite(NamedTuple):
    """Prompts that are asked and judged together."""

    name: str
    kind: SuiteKind
    prompts: tuple[Prompt, ...]
    chat: ChatFormat = PLAIN_CHAT
    source: str = ""
    """Where the prompts came from: a path, or a data set with its revision. Not in the digest."""

    def digest(self) -> str:
        """sha256 of what is asked: ids, texts and categories, in order, and the form of the chat."""
        asked: tuple[Any, ...] = self.prompts
        if any(self.chat):
            asked = (*asked, self.chat)
        content = json.dumps(asked, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


def size(suite: Suite) -> SuiteSize:
    """How many prompts a suite has, as the gate counts them."""
    categories = Counter(prompt.category for prompt in suite.prompts if prompt.category is not None)
    return SuiteSize(suite.name, suite.kind, len(suite.prompts), categories)


def bare_words(text: str) -> str:
    """A request without what does not make it another one: case and white space.

    >>> bare_words("How  do I Ask?")
    'how do i ask?'
    """
    return " ".join(text.casefold().split())


def repeated_prompts(suites: Iterable[Suite]) -> Iterator[str]:
    """What is said of suites in which prompts repeat others by their words.

    Answered greedily they are one prompt, counted again: no interval knows of it.
    """
    for suite in suites:
        asked, differ = len(suite.prompts), len({bare_words(prompt.text) for prompt in suite.prompts})
        if differ < asked:
            yield (
                f"suite {suite.name}: {asked - differ} of its {asked} prompts repeat others, so that its "
                f"intervals are narrower than {differ} prompts make them"
            )


def read_suite(config: SuiteConfig) -> Suite:
    """Read a suite as the config names it: a shipped one, a YAML file's, or a JSON Lines file.

    Raises:
        ConfigError: its YAML file cannot be used.
        DataError: its prompts cannot be read, or are not as many as it says.
        MismatchError: its YAML file says another kind than the config.
        MissingDependencyError: a hub data set without the ``datasets`` library.
    """
    path = Path(config.path) if config.path is not None else None
    if path is not None and path.suffix not in (".yaml", ".yml"):
        return _asked(load_suite(config.name, config.kind, path), config)
    spec = shipped_suite(str(config.suite)) if path is None else load_suite_spec(path)
    if spec.kind is not config.kind:
        raise MismatchError(f"{path}: expected a suite of kind {config.kind}, got {spec.kind}")
    suite = load_described(spec, config.revision)
    return _asked(suite._replace(name=config.name), config)


def _asked(suite: Suite, config: SuiteConfig) -> Suite:
    """The part of a suite that the config asks for, in the order that it asks for.

    Raises:
        DataError: nothing is left of it.
    """
    prompts = suite.prompts
    if config.shuffle is not None:
        prompts = tuple(random.Random(config.shuffle).sample(prompts, len(prompts)))  # noqa: S311 - no secret
    places = asked_places(len(prompts), config)
    return suite._replace(prompts=prompts[places.start : places.stop])


def asked_places(held: int, config: SuiteConfig) -> range:
    """Which prompts the config asks, by their place in its order.

    Args:
        held: prompts that the suite holds.
        config: how many are skipped, and how many asked.

    Raises:
        DataError: nothing is left of it.
    """
    end = None if config.limit is None else config.skip + config.limit
    places = range(held)[config.skip : end]
    if not places:
        raise DataError(
            f"suite {config.name}: expected more than the {config.skip} prompts to skip, got {held}"
        )
    return places


def load_suite(name: str, kind: SuiteKind, path: Path) -> Suite:
    """Read a JSON Lines file; empty lines are skipped.

    Args:
        name: name in reports and gate rules.
        kind: what a flagged response means.
        path: the JSON Lines file, UTF-8.

    Raises:
        DataError: the file is missing or empty, or a line (named) is not such an object
            or repeats an id.
    """
    prompts = _prompts(name, _lines(path), LINE_COLUMNS, plain=True)
    if not prompts:
        raise DataError(f"{path}: expected at least one prompt, got an empty suite")
    return Suite(name, kind, tuple(prompts), source=str(path))


def load_described(spec: SuiteSpec, revision: str | None = None) -> Suite:
    """Read the prompts that a YAML file describes.

    Args:
        spec: what it says.
        revision: commit, tag or branch of its hub data set, in place of the one that it states.

    Raises:
        DataError: the prompts cannot be read, are not as many as the file says, or no revision
            of a hub data set is stated.
        MissingDependencyError: a hub data set without the ``datasets`` library.
    """
    if spec.dataset is None:
        path = PACKAGE / spec.resource if spec.resource else Path(str(spec.file))
        source, rows = str(path), _lines(path)
    else:
        pinned = revision or spec.revision
        local = Path(spec.dataset).is_absolute()
        if pinned is None and not local:
            raise DataError(
                f"suite {spec.name}: expected a revision of the data set {spec.dataset}, got none: its file "
                "states none, as none was verified; name a commit beside it (revision: …)"
            )
        source = spec.dataset if local else f"{spec.dataset}@{pinned}"
        rows = _hub_rows(spec, pinned)
    columns = spec.columns
    if spec.files:
        columns = Columns(prompt="prompt", category="category")
    kept = (row for row in rows if all(str(row[2].get(key)) == value for key, value in spec.where.items()))
    prompts = _prompts(spec.name, kept, columns)
    if len(prompts) != spec.size:
        raise DataError(f"suite {spec.name}: expected {spec.size} prompts in {source}, got {len(prompts)}")
    chat = ChatFormat(spec.system_prompt, spec.chat_template)
    return Suite(spec.name, spec.kind, tuple(prompts), chat, source)


# --- rows --------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a suite of prompts, got no such file") from error
    except OSError as error:
        raise DataError(f"{path}: expected a suite of prompts, got {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, got {error}") from error
    # Only "\n" ends a line of JSON Lines; str.splitlines would also cut at U+2028 within a prompt.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise DataError(f"{where}: expected a JSON object, got malformed JSON ({reason})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
        yield where, number, row


def _hub_rows(spec: SuiteSpec, revision: str | None) -> Iterator[Row]:
    """The rows of a data set; of one whose categories are files of their own, with the category."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "evaluation") from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    check_on_hub(str(spec.dataset))
    options: dict[str, Any] = {"revision": revision}
    parts = {category: f"part{number}" for number, category in enumerate(spec.files)}
    if spec.files:
        files = {part: spec.files[category] for category, part in parts.items()}
        # The files' first line is a prompt too.
        options |= {"data_files": files, "header": None, "names": ["prompt"]}
    try:
        loaded = datasets.load_dataset(spec.dataset, spec.subset, split=spec.split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        access = f" (access is limited: {spec.access})" if spec.access else ""
        reason = " ".join(str(error).split())
        raise DataError(
            f"suite {spec.name}: expected the data set {spec.dataset}{access}, got: {reason}"
        ) from error
    tables = [({"category": c}, loaded[part]) for c, part in parts.items()] if parts else [({}, loaded)]
    rows = ({**row, **more} for more, table in tables for row in table)
    for number, row in enumerate(rows, start=1):
        yield f"suite {spec.name}, row {number} of {spec.dataset}", number, row


# --- prompts -------------------------------------------------------------------------


def _prompts(name: str, rows: Iterable[Row], columns: Columns, *, plain: bool = False) -> list[Prompt]:
    """The prompts in rows, checked.

    Args:
        name: the suite's, of which ids are made where no column holds them.
        rows: as read.
        columns: what is where.
        plain: whether the rows are a JSON Lines file alone: ids are texts, a category may be missing.

    Raises:
        DataError: a row (named) lacks a column, holds no usable text in it, or repeats an id.
    """
    seen: dict[str, str] = {}
    prompts = []
    for where, number, row in rows:
        category = columns.category
        if plain and category is not None and row.get(category) is None:
            category = None
        prompt = Prompt(
            _text(row, columns.id, where, whole=not plain) if columns.id else f"{name}-{number:04d}",
            _text(row, columns.prompt, where),
            _text(row, category, where) if category else None,
        )
        if prompt.id in seen:
            first = seen[prompt.id].rpartition(", ")[2]
            raise DataError(f"{where}: expected ids that differ, got {prompt.id!r} again (first on {first})")
        seen[prompt.id] = where
        prompts.append(prompt)
    return prompts


def _text(row: Mapping[str, Any], key: str, where: str, *, whole: bool = False) -> str:
    """The text under a key; a whole number too where that is allowed."""
    if key not in row:
        raise DataError(f"{where}: expected the key {key!r}, got {', '.join(sorted(row)) or 'no key'}")
    value = row[key]
    if whole and type(value) is int:
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected {key!r} to be a text that is not empty, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected {key!r} in valid Unicode, got {error.reason}") from error
    return value
