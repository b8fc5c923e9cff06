"""From answers to a rate: a judge's flags on one suite, with their interval.

The texts themselves stay out of the report; they are returned as rows for a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import JsonValue

from safemerge.errors import EvaluationError
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges.base import Answer, Judge, valid_unicode
from safemerge.evaluation.suites import Suite
from safemerge.records import SuiteReport
from safemerge.stats import wilson_interval

Row = dict[str, str | bool | None]
"""One prompt in the table of answers: suite, kind, id, category, prompt, response, flag."""


class JudgedSuite(NamedTuple):
    """A suite's report, and the texts that it rests on."""

    report: SuiteReport
    rows: list[Row]


def judge_suite(
    suite: Suite,
    responses: Mapping[str, str],
    judge: Judge,
    protocol: Mapping[str, JsonValue],
    journal: Journal | None = None,
) -> JudgedSuite:
    """Judge every answer to a suite.

    Args:
        suite: the prompts.
        responses: prompt id to answer.
        judge: what flags them.
        protocol: how the answers were generated, for the report.
        journal: where the judge keeps what it has found so far.

    Returns:
        The share of flagged prompts with its two-sided 95 % Wilson interval, and the rows.

    Raises:
        EvaluationError: a prompt was not answered, or the judge passed over one.
    """
    ids = [prompt.id for prompt in suite.prompts]
    _check_all("an answer", suite.name, ids, responses)
    # What follows writes the responses to files, which hold no lone surrogates.
    answers = [Answer(prompt, valid_unicode(responses[prompt.id])) for prompt in suite.prompts]
    flags = judge.flags(suite.kind, answers, journal)
    _check_all(f"a flag from judge {judge.record.id}", suite.name, ids, flags)
    count = sum(flags.values())
    report = SuiteReport(
        suite=suite.name,
        kind=suite.kind,
        judge=judge.record,
        prompts_digest=suite.digest(),
        protocol=dict(protocol),
        flags={prompt_id: flags[prompt_id] for prompt_id in ids},
        categories={prompt.id: prompt.category for prompt in suite.prompts if prompt.category is not None},
        rate=count / len(ids),
        interval=wilson_interval(count, len(ids)),
    )
    rows: list[Row] = [
        {
            "suite": suite.name,
            "kind": suite.kind.value,
            "id": answer.prompt.id,
            "category": answer.prompt.category,
            "prompt": answer.prompt.text,
            "response": answer.response,
            "flag": flags[answer.prompt.id],
        }
        for answer in answers
    ]
    return JudgedSuite(report, rows)


def _check_all(what: str, suite: str, ids: list[str], found: Mapping[str, object]) -> None:
    if missing := [prompt_id for prompt_id in ids if prompt_id not in found]:
        raise EvaluationError(
            f"suite {suite}: expected {what} for every prompt, got none for {', '.join(missing)}"
        )
