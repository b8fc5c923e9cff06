"""Rules against another arm: the champion, the aligned model or the fine-tuned adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from safemerge.arms import CANDIDATE, CHAMPION
from safemerge.errors import DataError
from safemerge.gate.comparison import (
    UNMEASURED,
    check_adapter,
    measured,
    model_difference,
    suite_difference,
    suites_of,
    task_of,
    utility_differences,
    utility_of,
)
from safemerge.gate.policy import GatePolicy, Regression
from safemerge.gate.wording import cannot_judge, cannot_tell, judged, not_applicable, points, too_few
from safemerge.records import Estimate, EvaluationReport, Interval, RuleOutcome, SuiteKind, SuiteReport
from safemerge.stats import holm, mcnemar, mean_difference, rate_difference, smallest_significant

STOPPED = (
    "the suite was stopped early, and this rule pairs whole suites; evaluate without evaluation.sequential"
)
WORDS = {SuiteKind.HARMFUL: "harmful", SuiteKind.OVER_REFUSAL: "over-refusal"}


class Reference(NamedTuple):
    """An arm that the candidate is compared with."""

    report: EvaluationReport | None = None
    problem: str = "its report is missing"
    """Why there is no report."""
    remedy: str = "evaluate it again as the candidate was"
    """How to get a report that can be compared, for the reader of the verdict."""
    exists: bool = True
    """False where there is no such arm yet: the rules against it do not apply."""


class _Comparison(NamedTuple):
    """One rule against one arm whose report is there."""

    rule: str
    name: str
    candidate: EvaluationReport
    other: EvaluationReport
    remedy: str
    limit: float


class _Pair(NamedTuple):
    """One suite as both arms answered it."""

    ours: SuiteReport
    theirs: SuiteReport


def regression_rules(
    candidate: EvaluationReport, name: str, reference: Reference, wanted: Regression | None
) -> Iterator[RuleOutcome]:
    """Every rule of the policy against one arm.

    Args:
        candidate: the adapter that may be released.
        name: champion, aligned or fine_tuned.
        reference: that arm.
        wanted: the rules; None gives none.
    """
    if wanted is None:
        return
    for field, limit in wanted:
        if limit is None:
            continue
        rule = f"against.{name}.{field}"
        if idle := _not_applicable(candidate, name, reference):
            yield not_applicable(rule, name, limit, idle)
            continue
        try:
            other = _usable(candidate, name, reference)
        except DataError as error:
            yield cannot_judge(rule, name, limit, f"{candidate.arm} against {name}: {error}")
            continue
        yield from _RULES[field].outcomes(_Comparison(rule, name, candidate, other, reference.remedy, limit))


def paired_rules(policy: GatePolicy) -> Iterator[tuple[str, SuiteKind]]:
    """Rules that pair a suite's prompts with another arm's, with the kind of suites that they are about."""
    for name in type(policy.against).model_fields:
        wanted: Regression | None = getattr(policy.against, name)
        for field, limit in wanted or ():
            if limit is not None and (kind := _RULES[field].kind):
                yield f"against.{name}.{field}", kind


def _not_applicable(candidate: EvaluationReport, name: str, reference: Reference) -> str | None:
    """Why there is rightly nothing to compare with; None where there is."""
    if not reference.exists:
        return f"there is no {name} yet"
    digest = candidate.adapter_digest
    if name == CHAMPION and reference.report and digest and digest == reference.report.adapter_digest:
        return f"{candidate.arm} is the champion itself"
    return None


def _usable(candidate: EvaluationReport, name: str, reference: Reference) -> EvaluationReport:
    """The reference's report, of what it should be of.

    Raises:
        DataError: it is missing, of something else, or on a base model that it should share.
    """
    if reference.report is None:
        raise DataError(f"{reference.problem}; {reference.remedy}")
    check_adapter(name, reference.report)
    # A champion may stand on an older base model: what counts is how the two answer the same prompts.
    if name != CHAMPION and (odd := next(model_difference(candidate, reference.report), None)):
        raise DataError(f"they differ in {odd}")
    return reference.report


# --- rates of flagged prompts --------------------------------------------------


def _increase_rules(it: _Comparison, kind: SuiteKind) -> Iterator[RuleOutcome]:
    """Upper end of the paired interval of the increase, suite by suite."""
    pairs, refused = _pairs(it, kind)
    yield from refused
    for suite, pair in pairs.items():
        found = rate_difference(pair.ours.flags, pair.theirs.flags)
        explanation = (
            f"{_increase(it, kind, suite, found)}: upper end {points(found.interval.high, it.limit)} "
            f"must be at most {100 * it.limit:+g} points"
        )
        yield _bound(it, suite, found, explanation, "prompts")


def _significance_rules(it: _Comparison, kind: SuiteKind) -> Iterator[RuleOutcome]:
    """An exact McNemar test of every suite, corrected for their number."""
    pairs, refused = _pairs(it, kind)
    yield from refused
    p_values = holm({suite: mcnemar(p.ours.flags, p.theirs.flags, "greater") for suite, p in pairs.items()})
    needed = smallest_significant(it.limit, max(1, len(pairs)))
    together = f", corrected for {len(pairs)} suites" if len(pairs) > 1 else ""
    for suite, p in p_values.items():
        found = rate_difference(pairs[suite].ours.flags, pairs[suite].theirs.flags)
        said = _increase(it, kind, suite, found)
        if found.n < needed:
            problem = (
                f"{found.n} prompts can never show an increase at the level {it.limit:g}, {needed} could"
            )
            yield cannot_tell(it.rule, suite, it.limit, f"{said}: {problem}", p, found.interval)
            continue
        says = "a significant increase" if p <= it.limit else "no significant increase"
        explanation = f"{said}: {says} at the level {it.limit:g} (exact McNemar test, p = {p:.3g}{together})"
        yield judged(it.rule, suite, p, it.limit, p > it.limit, explanation, found.interval)


def _pairs(it: _Comparison, kind: SuiteKind) -> tuple[dict[str, _Pair], list[RuleOutcome]]:
    """The suites that both arms answered alike, by name, and a rule for each that they did not."""
    pairs: dict[str, _Pair] = {}
    refused: list[RuleOutcome] = []
    reports = it.candidate, it.other
    names = dict.fromkeys(suite.suite for report in reports for suite in suites_of(report, kind))
    if not names:
        problem = f"no {WORDS[kind]} suite was evaluated"
        refused.append(cannot_judge(it.rule, f"{WORDS[kind]} suites", it.limit, problem))
    for name in names:
        if odd := suite_difference(name, *reports):
            refused.append(cannot_judge(it.rule, name, it.limit, _not_comparable(it, odd)))
            continue
        pair = _Pair(*(next(suite for suite in report.suites if suite.suite == name) for report in reports))
        if pair.ours.stopped or pair.theirs.stopped:
            problem = f"{WORDS[kind]} rate on {name} against {it.name}: {STOPPED}"
            refused.append(cannot_judge(it.rule, name, it.limit, problem))
            continue
        if measured(pair.ours) is None or measured(pair.theirs) is None:
            problem = f"{WORDS[kind]} rate on {name} against {it.name}: {UNMEASURED}"
            refused.append(cannot_judge(it.rule, name, it.limit, problem))
            continue
        pairs[name] = pair
    return pairs, refused


def _increase(it: _Comparison, kind: SuiteKind, suite: str, found: Estimate) -> str:
    low, high = found.interval.low, found.interval.high
    return (
        f"{WORDS[kind]} rate {points(found.value)} points (95 % interval {points(low)} to {points(high)}) "
        f"against {it.name} on {suite}"
    )


# --- utility -------------------------------------------------------------------


def _utility_rules(it: _Comparison) -> Iterator[RuleOutcome]:
    """Non-inferiority: the worst end of the paired interval of what is lost against the margin."""
    task = task_of(it.candidate)
    try:
        ours, theirs = utility_of(CANDIDATE, it.candidate), utility_of(it.name, it.other)
        odd = next(utility_differences(ours, theirs), None)
        if odd:
            yield cannot_judge(it.rule, task, it.limit, _not_comparable(it, odd))
            return
        gained = mean_difference(ours.scores, theirs.scores, higher_is_better=ours.higher_is_better)
    except DataError as error:
        yield cannot_judge(it.rule, task, it.limit, f"utility on {task} against {it.name}: {error}")
        return
    # Taken from 0.0, so that no loss reads 0 and not -0.
    low, high = 0.0 - gained.interval.high, 0.0 - gained.interval.low
    lost = Estimate(value=0.0 - gained.value, interval=Interval(low=low, high=high), n=gained.n)
    explanation = (
        f"utility lost {lost.value:.4g} (95 % interval {low:.4g} to {high:.4g}) against {it.name} on {task}: "
        f"upper end {high:.6g} must be at most {it.limit:.6g}"
    )
    yield _bound(it, task, lost, explanation, "documents")


# --- words ---------------------------------------------------------------------


def _bound(it: _Comparison, subject: str, found: Estimate, explanation: str, what: str) -> RuleOutcome:
    """Pass where the worst end keeps the limit, fail where the figure does not, in between cannot tell."""
    value, worst = found.value, found.interval.high
    if worst <= it.limit or value > it.limit:
        passed = worst <= it.limit
        return judged(it.rule, subject, worst, it.limit, passed, explanation, found.interval)
    # An interval's width falls with the root of the sample.
    room = it.limit - value
    needed = math.ceil(found.n * ((worst - value) / room) ** 2) if room > 0 else None
    explanation += f"; {too_few(found.n, needed, what)}"
    return cannot_tell(it.rule, subject, it.limit, explanation, worst, found.interval)


def _not_comparable(it: _Comparison, difference: str) -> str:
    return f"{it.candidate.arm} and {it.name} cannot be compared: they differ in {difference}; {it.remedy}"


class _Rules(NamedTuple):
    """What a policy field asks for."""

    outcomes: Callable[[_Comparison], Iterator[RuleOutcome]]
    kind: SuiteKind | None = None
    """Of the suites whose prompts are paired; None where these are the task's documents."""


def _of_suites(
    kind: SuiteKind, outcomes: Callable[[_Comparison, SuiteKind], Iterator[RuleOutcome]]
) -> _Rules:
    return _Rules(lambda it: outcomes(it, kind), kind)


_RULES = {
    "max_harmful_increase": _of_suites(SuiteKind.HARMFUL, _increase_rules),
    "harmful_alpha": _of_suites(SuiteKind.HARMFUL, _significance_rules),
    "max_over_refusal_increase": _of_suites(SuiteKind.OVER_REFUSAL, _increase_rules),
    "over_refusal_alpha": _of_suites(SuiteKind.OVER_REFUSAL, _significance_rules),
    "max_utility_loss": _Rules(_utility_rules),
}
"""Every field of :class:`~safemerge.gate.policy.Regression`, and what it asks for."""
