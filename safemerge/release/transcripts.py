"""Prompts with what every arm answered: gathered from the rows of evaluations, chosen and cut for pages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safemerge.errors import DataError
from safemerge.records import EvaluationReport, valid_unicode
from safemerge.reports.release import ShownAnswer, Transcript

Rows = Sequence[Mapping[str, Any]]
"""What an evaluation keeps of each prompt: suite, kind, id, category, prompt, response, flag."""

MOST_SHOWN = 300
"""Prompts on a page."""
MOST_CHARACTERS = 3000
"""Characters of a prompt or an answer on a page."""


def read_rows(path: Path) -> Rows:
    """Read the rows that ``safemerge evaluate`` writes as JSON Lines, or MLflow as a table.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            table = json.loads(text)
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        if not all({"suite", "id", "prompt", "response", "flag"} <= row.keys() for row in rows):
            raise DataError(f"{path}: expected rows with suite, id, prompt, response and flag, got others")
        if odd := [row["flag"] for row in rows if not isinstance(row["flag"], bool)]:
            # A text, "false" too, would count as flagged.
            raise DataError(f"{path}: expected true or false as every flag, got {odd[0]!r}")
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected the answers of an evaluation, got no such file") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: expected the answers of an evaluation, got {error}") from error
    return rows


def gather(reports: Mapping[str, EvaluationReport], rows: Mapping[str, Rows]) -> list[Transcript]:
    """Every prompt with the answers of all arms that have rows, uncut, in the order of the suites.

    Prompts of one id whose texts differ, as where a suite was changed in between, are prompts of their own.

    Args:
        reports: arm to report; its flags are those that count.
        rows: arm to rows.

    Raises:
        DataError: rows contradict the flags of their report: they are of another evaluation.
    """
    asked: dict[tuple[str, str, str], dict[str, Any]] = {}
    for arm, report in reports.items():
        suites = {suite.suite: suite for suite in report.suites}
        for row in rows.get(arm, ()):
            suite, prompt_id = suites.get(str(row["suite"])), valid_unicode(str(row["id"]))
            flag = suite.flags.get(prompt_id) if suite else None
            if suite is None or flag is not row["flag"]:
                raise DataError(
                    f"answers of {arm}: expected the prompts and flags of its report, got others: "
                    f"{row['suite']}/{prompt_id}"
                )
            prompt = valid_unicode(str(row["prompt"]))
            known = asked.setdefault(
                (suite.suite, prompt_id, prompt),
                {
                    "suite": suite.suite,
                    "kind": suite.kind,
                    "id": prompt_id,
                    "category": suite.categories.get(prompt_id),
                    "prompt": prompt,
                    "answers": {},
                },
            )
            known["answers"][arm] = ShownAnswer(response=valid_unicode(str(row["response"])), flag=flag)
    return [Transcript(**known) for known in asked.values()]


def chosen(transcripts: Sequence[Transcript], candidate: str, most: int = MOST_SHOWN) -> list[Transcript]:
    """Those to show: first where arms differ, then what the candidate was flagged for; long texts are cut."""

    def rank(number: int) -> tuple[bool, bool, int]:
        transcript = transcripts[number]
        answer = transcript.answers.get(candidate)
        return not transcript.changed, not (answer and answer.flag), number

    ranked = sorted(range(len(transcripts)), key=rank)[: max(0, most)]
    return [_cut(transcripts[number]) for number in sorted(ranked)]


def lines(transcripts: Sequence[Transcript]) -> Iterator[str]:
    """JSON Lines, one a prompt, whole."""
    for transcript in transcripts:
        yield json.dumps(transcript.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False) + "\n"


def _cut(transcript: Transcript) -> Transcript:
    answers = {
        arm: answer.model_copy(update=_shortened("response", answer.response))
        for arm, answer in transcript.answers.items()
    }
    return transcript.model_copy(update={"answers": answers} | _shortened("prompt", transcript.prompt))


def _shortened(field: str, text: str) -> dict[str, Any]:
    return {field: text[:MOST_CHARACTERS], "omitted": max(0, len(text) - MOST_CHARACTERS)}
