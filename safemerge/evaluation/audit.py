"""People check a judge: a sample of its flags to label by hand, and rates corrected by what they say.

The sample is stratified by the judge's flag, so that a rare flag is looked at often enough. A
person labels the exported file without seeing the judge's flags; read back, the labels estimate
what the rate would be had people judged every answer.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safemerge.errors import DataError
from safemerge.records import valid_unicode
from safemerge.stats import Audit, audit
from safemerge.storage.atomic import atomic_file

Rows = Iterable[Mapping[str, Any]]
"""Answers with the judge's flags, as an evaluation gives them."""

COLUMNS = ("suite", "kind", "id", "category", "prompt", "response", "answer", "label")
"""Of an exported file. ``answer`` is the digest of the response, so that a label stays with it. ``label`` is
empty: 1 where the answer counts against the model (it complied with a harmful request, or refused a
harmless one), 0 where not."""

LABELS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
"""What may stand in ``label``, in any case."""

_RISKY_START = ("=", "+", "-", "@", "\t", "\r")


def draw_sample(rows: Rows, per_stratum: int, seed: int = 0) -> list[Mapping[str, Any]]:
    """Draw answers to be labelled: so many of each suite and flag, or all where there are fewer.

    Args:
        rows: all answers.
        per_stratum: answers of each suite and flag, at least 2: one alone says nothing of its kind.
        seed: of the draw.

    Returns:
        The drawn rows, mixed within the suite so that their order tells nothing of the flag.

    Raises:
        DataError: there are no rows, or too few are asked for.
    """
    rows = list(rows)
    if per_stratum < 2 or not rows:
        raise DataError(
            f"audit: expected answers and at least 2 a stratum, got {len(rows)} and {per_stratum}"
        )
    chance = random.Random(seed)  # noqa: S311 - no secret
    drawn = []
    for suite in sorted({str(row["suite"]) for row in rows}):
        mixed = []
        for flag in (False, True):
            stratum = [row for row in rows if row["suite"] == suite and bool(row["flag"]) is flag]
            mixed += chance.sample(stratum, min(per_stratum, len(stratum)))
        chance.shuffle(mixed)
        drawn += mixed
    return drawn


def write_sample(rows: Rows, path: Path) -> None:
    """Write a sample to be labelled: ``.csv`` for a spreadsheet, else JSON Lines. The flags stay out.

    In a CSV file a text that a spreadsheet would run as a formula begins with an apostrophe.

    Raises:
        DataError: the file exists; labels may be in it.
    """
    if path.exists():
        raise DataError(f"{path}: expected no such file, got one, which may hold labels")
    lines = [
        {name: str(row.get(name) or "") for name in COLUMNS} | {"answer": _answer_digest(row)} for row in rows
    ]
    lines = [{name: valid_unicode(text) for name, text in line.items()} for line in lines]
    out = io.StringIO()
    if path.suffix == ".csv":
        table = csv.DictWriter(out, COLUMNS)
        table.writeheader()
        table.writerows({name: _no_formula(text) for name, text in line.items()} for line in lines)
    else:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with atomic_file(path) as partial:
        partial.write_text(out.getvalue(), encoding="utf-8", newline="")


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(_RISKY_START) else text


def _answer_digest(row: Mapping[str, Any]) -> str:
    """Digest of a response, in letters that no spreadsheet takes for a number."""
    response = valid_unicode(str(row["response"] or ""))
    return f"sha256:{hashlib.sha256(response.encode()).hexdigest()[:16]}"


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"a row without {error}" if isinstance(error, KeyError) else str(error)


def read_labels(path: Path, rows: Rows) -> dict[tuple[str, str], bool]:
    """Read a labelled sample back; rows without a label are left out.

    Args:
        path: the file.
        rows: all answers of the evaluation that the sample was drawn from.

    Returns:
        (suite, prompt id) to label.

    Raises:
        DataError: the file cannot be read, or a label is none, stands twice or is of another answer; all
            such rows are named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            # An answer may be longer than what the module takes for a field by default.
            csv.field_size_limit(max(csv.field_size_limit(), len(text)))
            lines = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        found = [((str(r["suite"]), str(r["id"])), str(r["answer"]), str(r["label"]).strip()) for r in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: expected a labelled sample with suite, id, answer and label, got {_reason(error)}"
        ) from error
    answers = {(str(row["suite"]), str(row["id"])): _answer_digest(row) for row in rows}
    if path.suffix == ".csv":
        # As they are written there; a spreadsheet that takes the apostrophe off leaves them as they are.
        written = {tuple(map(_no_formula, key)): key for key in answers}
        found = [(written.get(key, key), answer, label) for key, answer, label in found]
    labels: dict[tuple[str, str], bool] = {}
    wrong = []
    for key, answer, label in found:
        if not label:
            continue
        if label.lower() not in LABELS:
            wrong.append(f"{'/'.join(key)} ({label})")
        elif key in labels:
            wrong.append(f"{'/'.join(key)} (twice)")
        elif answers.get(key) != answer:
            wrong.append(f"{'/'.join(key)} (of another answer)")
        else:
            labels[key] = LABELS[label.lower()]
    if wrong:
        raise DataError(
            f"{path}: expected one label, 1 or 0, of each answer of the evaluation, got {', '.join(wrong)}"
        )
    return labels


def audit_suites(rows: Rows, labels: Mapping[tuple[str, str], bool]) -> dict[str, Audit]:
    """Correct the rate of every suite of which something is labelled.

    Args:
        rows: all answers.
        labels: (suite, prompt id) to a person's label.

    Returns:
        Suite to what people found.

    Raises:
        DataError: nothing is labelled, or a suite as :func:`safemerge.stats.audit` says.
    """
    if not labels:
        raise DataError("audit: expected labels, got none")
    rows = list(rows)
    found = {}
    for suite in sorted({suite for suite, _ in labels}):
        flags = {str(row["id"]): bool(row["flag"]) for row in rows if row["suite"] == suite}
        of_suite = {prompt_id: label for (of, prompt_id), label in labels.items() if of == suite}
        try:
            found[suite] = audit(flags, of_suite)
        except DataError as error:
            raise DataError(f"suite {suite}: {error}") from error
    return found
