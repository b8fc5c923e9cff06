"""What fine-tuning did to harmfulness and what the repair undid, in paired figures and plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safemerge.arms import ALIGNED, CANDIDATE, FINE_TUNED, SCALE_SELECTED
from safemerge.errors import DataError
from safemerge.gate.comparison import check_adapter, measured, model_difference, suite_difference
from safemerge.records import Estimate, EvaluationReport, SuiteKind
from safemerge.stats import rate_difference, share_won_back


def findings(
    aligned: EvaluationReport | None,
    fine_tuned: EvaluationReport | None,
    repaired: EvaluationReport | None,
    control: EvaluationReport | None = None,
    *,
    name: str = "SafeMERGE",
) -> Iterator[str]:
    """Sentences on every harmful suite; none where the aligned model or the fine-tuned adapter is missing.

    Args:
        aligned: the aligned model.
        fine_tuned: the unrepaired adapter.
        repaired: the adapter that is judged.
        control: the task adapter, scaled in the layers that were merged.
        name: what the repaired adapter is called.

    Raises:
        DataError: the reports do not compare, or suites were stopped early: the figures pair whole ones.
    """
    if aligned is None or fine_tuned is None:
        return
    check_adapter(ALIGNED, aligned)
    for suite in aligned.suites:
        if suite.kind is not SuiteKind.HARMFUL:
            continue
        before, after = (_flags(report, aligned, suite.suite) for report in (aligned, fine_tuned))
        rise = _points(rate_difference(after, before))
        yield f"Fine-tuning moved the harmful rate on {suite.suite} by {rise} points."
        if repaired is None:
            continue
        merged = _flags(repaired, aligned, suite.suite)
        yield f"{name} moved it by {_points(rate_difference(merged, after))} points from there."
        won_back = share_won_back(merged, before, after)
        if won_back is None:
            yield "The prompts cannot tell whether it won back any of that: fine-tuning's rise may be zero."
        else:
            low, high = won_back.interval.low, won_back.interval.high
            yield f"It won back {100 * won_back.value:.0f} % [{100 * low:.0f}–{100 * high:.0f}] of the rise."
        if control is not None:
            scaled = _flags(control, aligned, suite.suite)
            yield (
                "Against the same layers merely scaled, the safety adapter changed it by "
                f"{_points(rate_difference(merged, scaled))} points."
            )


def found_of(reports: Mapping[str, EvaluationReport], name: str) -> tuple[str, ...]:
    """The sentences for a release report; none where the arms do not compare."""
    arms = [reports.get(arm) for arm in (ALIGNED, FINE_TUNED, CANDIDATE, SCALE_SELECTED)]
    try:
        return tuple(findings(*arms, name=name))
    except DataError:
        return ()


def _flags(report: EvaluationReport, aligned: EvaluationReport, name: str) -> Mapping[str, bool]:
    """A suite's flags, once it is known that they pair with the aligned model's."""
    odd = next(model_difference(report, aligned), None) or suite_difference(name, report, aligned)
    if odd:
        raise DataError(f"{report.arm} and {aligned.arm} cannot be compared: they differ in {odd}")
    suite = next(suite for suite in report.suites if suite.suite == name)
    if suite.stopped or measured(suite) is None:
        raise DataError(f"suite {name} of {report.arm}: expected all flags and a rate that agrees with them")
    return suite.flags


def _points(estimate: Estimate) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    return f"{100 * estimate.value:+.1f} [{100 * low:+.1f} to {100 * high:+.1f}]"
