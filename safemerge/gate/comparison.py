"""What may be believed of a report, and whether two reports may be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from safemerge.arms import ALIGNED, CANDIDATE, FINE_TUNED
from safemerge.errors import DataError
from safemerge.records import EvaluationReport, Interval, Stopped, SuiteKind, SuiteReport, UtilityReport
from safemerge.stats import FinalCounts, GainKept, category_rates, final_counts, gain_kept, whole_interval
from safemerge.stats.rates import listed

UNMEASURED = "no rate that agrees with the flags of the prompts"


class Measured(NamedTuple):
    """A rate that agrees with the flags it comes from, of a suite or of one of its categories."""

    rate: float
    """Share of flags among the prompts that were asked."""
    interval: Interval
    n: int
    """Prompts that were asked."""
    planned: int
    """Prompts that there are; more than ``n`` where the suite was stopped early."""
    final: FinalCounts
    """What the number of flags of all of them can be: the one that was counted, if all were asked."""
    error: float | None = None
    """Probability, at most, that it is another; None where all were asked."""


def measured(suite: SuiteReport) -> Measured | None:
    """Rate and interval recomputed from the flags; None where the report lacks or contradicts them."""
    if not suite.flags or suite.rate is None or suite.interval is None:
        return None
    try:
        found = _measured(sum(suite.flags.values()), suite.n, suite.planned, suite.stopped)
    except DataError:
        return None
    stated = (suite.rate, suite.interval.low, suite.interval.high)
    expected = (found.rate, found.interval.low, found.interval.high)
    # NaN is close to nothing, so it ends here too.
    agree = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(stated, expected, strict=True))
    return found if agree else None


def measured_categories(suite: SuiteReport) -> dict[str, Measured | None]:
    """Category to its rate, by name; None for one that was not reached before the suite was stopped.

    Raises:
        DataError: the categories are not those of the prompts that were judged.
    """
    rates = category_rates(suite.flags, suite.categories)
    if suite.stopped is None:
        planned = {category: rate.n for category, rate in rates.items()}
    else:
        planned = suite.stopped.planned_categories
    if unknown := sorted(rates.keys() - planned.keys()):
        raise DataError(f"categories: expected those of the whole suite, got others: {', '.join(unknown)}")
    found: dict[str, Measured | None] = dict.fromkeys(sorted(planned))
    for category, rate in rates.items():
        found[category] = _measured(round(rate.value * rate.n), rate.n, planned[category], suite.stopped)
    return found


def _measured(count: int, n: int, planned: int, stopped: Stopped | None) -> Measured:
    error = stopped.error if stopped else None
    final = FinalCounts(count, count) if error is None else final_counts(count, n, planned, error)
    return Measured(count / n, whole_interval(final, planned), n, planned, final, error)


def suites_of(report: EvaluationReport, kind: SuiteKind) -> list[SuiteReport]:
    """The suites of one kind, as the report orders them."""
    return [suite for suite in report.suites if suite.kind is kind]


def categories_of(suite: SuiteReport) -> set[str]:
    """Categories of the whole suite, whether asked or not."""
    return {*suite.categories.values(), *(suite.stopped.planned_categories if suite.stopped else ())}


def task_of(report: EvaluationReport) -> str:
    """Task and metric of the utility, by which rules name it."""
    utility = report.utility
    return "utility" if utility is None else f"{utility.task}/{utility.metric}"


def utility_gain(
    candidate: EvaluationReport, aligned: EvaluationReport | None, fine_tuned: EvaluationReport | None
) -> GainKept:
    """What fine-tuning gained, and the share of it that the candidate keeps.

    Args:
        candidate: the arm to judge.
        aligned: the aligned model on the same task and documents.
        fine_tuned: the fine-tuned adapter on the same task and documents.

    Returns:
        The gain and the share kept, as :func:`safemerge.stats.gain_kept` gives them.

    Raises:
        DataError: a report, its utility or its scores are missing, not finite or not comparable.
    """
    arm, base, tuned = (
        utility_of(name, report)
        for name, report in ((CANDIDATE, candidate), (ALIGNED, aligned), (FINE_TUNED, fine_tuned))
    )
    others = [report for report in (aligned, fine_tuned) if report is not None]
    differences = {odd for other in others for odd in model_difference(candidate, other)}
    differences |= {odd for other in (base, tuned) for odd in utility_differences(arm, other)}
    if differences:
        raise DataError(f"the reports differ in {', '.join(sorted(differences))}")
    return gain_kept(arm.scores, base.scores, tuned.scores, higher_is_better=arm.higher_is_better)


def utility_of(name: str, report: EvaluationReport | None) -> UtilityReport:
    """The utility of a report, with a finite value that agrees with its scores by document.

    Raises:
        DataError: the report or its utility is missing, not finite, or contradicts itself.
    """
    if report is None:
        raise DataError(f"the report of {name} is missing")
    check_adapter(name, report)
    utility = report.utility
    if utility is None or utility.value is None or not math.isfinite(utility.value):
        raise DataError(f"the report of {name} has no finite utility")
    if not utility.scores:
        raise DataError(f"the report of {name} has no scores by document")
    if bad := sorted(i for i, score in utility.scores.items() if not math.isfinite(score)):
        raise DataError(f"the report of {name} has scores that are not finite: {listed(bad)}")
    # Divided before they are summed, which no finite scores can overflow.
    mean = math.fsum(score / len(utility.scores) for score in utility.scores.values())
    if not math.isclose(mean, utility.value, rel_tol=1e-6, abs_tol=1e-9):
        raise DataError(f"{name}: the mean score {mean:.6g} is not the utility {utility.value:.6g}")
    return utility


def check_adapter(name: str, report: EvaluationReport) -> None:
    """Check that a report is of what its place stands for.

    Raises:
        DataError: the aligned model's is of an adapter, or another's of none.
    """
    if name == ALIGNED and report.adapter_digest is not None:
        raise DataError(
            f"the report of aligned is of the adapter {report.adapter_digest[:12]}, not of the model alone"
        )
    if name != ALIGNED and not report.adapter_digest:
        raise DataError(f"the report of {name} names no adapter")


def differences(one: EvaluationReport, two: EvaluationReport) -> Iterator[str]:
    """What keeps two reports of arms on one base model from being compared."""
    yield from model_difference(one, two)
    yield from measurement_differences(one, two)


def measurement_differences(one: EvaluationReport, two: EvaluationReport) -> Iterator[str]:
    """What two reports were not measured alike in, whatever the base models."""
    if one.utility is not None and two.utility is not None:
        yield from utility_differences(one.utility, two.utility)
    elif one.utility is not two.utility:
        yield "the utility task (one lacks it)"
    names = {suite.suite for report in (one, two) for suite in report.suites}
    yield from filter(None, (suite_difference(name, one, two) for name in names))


def model_difference(one: EvaluationReport, two: EvaluationReport) -> Iterator[str]:
    """Whether two reports are of different base models."""
    if one.model_digest != two.model_digest:
        yield "the base model"


def suite_difference(name: str, one: EvaluationReport, two: EvaluationReport) -> str | None:
    """What keeps one suite of two reports from being compared; None where nothing does."""
    ours, theirs = ([suite for suite in report.suites if suite.suite == name] for report in (one, two))
    if not ours or not theirs:
        odd = "one lacks it"
    elif len(ours) > 1 or len(theirs) > 1:
        odd = "one has it twice"
    else:
        odd = _odd_about(ours[0], theirs[0])
    return f"suite {name} ({odd})" if odd else None


def utility_differences(a: UtilityReport, b: UtilityReport) -> Iterator[str]:
    """What keeps two utilities from being compared."""
    task_a, task_b = ((u.task, u.metric, u.higher_is_better, u.task_digest, u.scores.keys()) for u in (a, b))
    if task_a != task_b:
        yield "the utility task"
    if a.protocol != b.protocol:
        yield f"how utility was measured ({odd_keys(a.protocol, b.protocol)})"


def odd_keys(one: Mapping[str, object], two: Mapping[str, object]) -> str:
    """The keys in which two mappings differ."""
    return ", ".join(sorted(key for key in one.keys() | two.keys() if one.get(key, ...) != two.get(key, ...)))


def _odd_about(a: SuiteReport, b: SuiteReport) -> str:
    """In what two reports of one suite were not measured alike; empty where in nothing."""
    if a.judge != b.judge:
        return "judge"
    same_suite = (a.kind, a.prompts_digest, a.planned) == (b.kind, b.prompts_digest, b.planned)
    if not same_suite or not _asked_alike(a, b):
        return "prompts"
    return f"generation: {odd_keys(a.protocol, b.protocol)}" if a.protocol != b.protocol else ""


def _asked_alike(a: SuiteReport, b: SuiteReport) -> bool:
    """Whether two arms were asked the same prompts of a suite, as far as both came in the same order."""
    if a.stopped is None and b.stopped is None:
        return a.flags.keys() == b.flags.keys()
    return a.flags.keys() <= b.flags.keys() or b.flags.keys() <= a.flags.keys()
