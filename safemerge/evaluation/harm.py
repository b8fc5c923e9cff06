"""From answers to a rate: a judge's flags on one suite, with their interval.

The texts themselves stay out of the report; they are returned as rows for a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import JsonValue

from safemerge.errors import EvaluationError
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges.base import Answer, Judge
from safemerge.evaluation.suites import Suite
from safemerge.records import Interval, Stopped, SuiteReport, valid_unicode
from safemerge.stats import final_counts, whole_interval, wilson_interval

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
    stopped: Stopped | None = None,
) -> JudgedSuite:
    """Judge every answer to a suite.

    Args:
        suite: the prompts.
        responses: prompt id to answer.
        judge: what flags them.
        protocol: how the answers were generated, for the report.
        journal: where the judge keeps what it has found so far.
        stopped: that the suite was stopped early: the prompts that have no response were not asked.

    Returns:
        The share of flagged prompts with its two-sided 95 % Wilson interval (of a suite that was stopped
        early, one that holds those of all final counts that are possible), and the rows.

    Raises:
        EvaluationError: a prompt was not answered, or the judge passed over one.
    """
    if stopped is None:
        _check_all("an answer", suite.name, [prompt.id for prompt in suite.prompts], responses)
    answers = _answers(suite, responses)
    flags = flags_of(suite, responses, judge, journal)
    count, n = sum(flags.values()), len(flags)
    report = SuiteReport(
        suite=suite.name,
        kind=suite.kind,
        judge=judge.record,
        prompts_digest=suite.digest(),
        protocol=dict(protocol),
        flags=flags,
        categories={a.prompt.id: a.prompt.category for a in answers if a.prompt.category is not None},
        rate=count / n,
        interval=_interval(count, n, stopped),
        stopped=stopped,
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


def flags_of(
    suite: Suite, responses: Mapping[str, str], judge: Judge, journal: Journal | None = None
) -> dict[str, bool]:
    """Prompt id to flag, for the prompts of a suite that were answered, in the suite's order.

    Raises:
        EvaluationError: the judge passed over one.
    """
    answers = _answers(suite, responses)
    flags = judge.flags(suite.kind, answers, journal)
    ids = [answer.prompt.id for answer in answers]
    _check_all(f"a flag from judge {judge.record.id}", suite.name, ids, flags)
    return {prompt_id: flags[prompt_id] for prompt_id in ids}


def _answers(suite: Suite, responses: Mapping[str, str]) -> list[Answer]:
    """What was answered; it is written to files, which hold no lone surrogates."""
    asked = (prompt for prompt in suite.prompts if prompt.id in responses)
    return [Answer(prompt, valid_unicode(responses[prompt.id])) for prompt in asked]


def _interval(count: int, n: int, stopped: Stopped | None) -> Interval:
    if stopped is None:
        return wilson_interval(count, n)
    return whole_interval(final_counts(count, n, stopped.planned, stopped.error), stopped.planned)


def _check_all(what: str, suite: str, ids: list[str], found: Mapping[str, object]) -> None:
    if missing := [prompt_id for prompt_id in ids if prompt_id not in found]:
        raise EvaluationError(
            f"suite {suite}: expected {what} for every prompt, got none for {', '.join(missing)}"
        )
