"""A choice as a page: candidates on the development split, arms on the final one, and why each fell."""

from __future__ import annotations

from safemerge.plots.page import Figure, html_table, page
from safemerge.plots.pareto import NO_LIMITS, ArmPoint, Limits, pareto_figure
from safemerge.records import Estimate
from safemerge.reports.tuning import CHOSEN_ARM, TunedArm, TunedCandidate, TuneReport

COLUMNS = ("candidate", "fate", "utility", "gain kept", "harmful rate", "refusals")
PROSE = ("by suite", "why")
ARM_COLUMNS = ("arm", "utility", "gain kept", "harmful rate", "95 % interval", "refusals")


def tune_html(report: TuneReport) -> str:
    """Utility against harmful rate: candidates, then arms on the split that the choice never saw."""
    figures = [found for found in (_final(report), _development(report)) if found is not None]
    rows = [
        [*candidate_row(candidate), refusals(candidate.over_refusal), candidate.reason]
        for candidate in report.candidates
    ]
    tables = html_table([*COLUMNS, *PROSE], rows, PROSE)
    if report.final:
        arms = [[*arm_row(arm), refusals(arm.over_refusal)] for arm in report.final]
        tables = html_table([*ARM_COLUMNS, "by suite"], arms, PROSE) + tables
    headline = f"Chosen: {report.chosen}" if report.chosen else "No candidate keeps the limits"
    split = "first picture: final split, which the choice never saw; second: development split. "
    return page(headline, f"{split if report.final else ''}{report.summary}", figures, tables)


def candidate_row(candidate: TunedCandidate) -> list[str]:
    """A candidate's figures as text, in the order of ``COLUMNS``."""
    return [
        candidate.name,
        candidate.fate.replace("_", " "),
        ("–" if candidate.utility is None else f"{candidate.utility:.4g}")
        + (f" on {candidate.utility_change.n}" if candidate.utility_change else ""),
        share(candidate.gain_kept),
        share(candidate.harmful) + (f" of {candidate.harmful.n}" if candidate.harmful else ""),
        worst(candidate.over_refusal),
    ]


def arm_row(arm: TunedArm) -> list[str]:
    """An arm's figures on the final split as text, in the order of ``ARM_COLUMNS``."""
    low, high = arm.harmful.interval.low, arm.harmful.interval.high
    return [
        arm.name,
        "–" if arm.utility is None else f"{arm.utility:.4g}",
        share(arm.gain_kept),
        share(arm.harmful),
        f"{100 * low:.1f} to {100 * high:.1f} %",
        worst(arm.over_refusal),
    ]


def share(found: Estimate | None) -> str:
    """A rate in percent."""
    return "–" if found is None else f"{100 * found.value:.1f} %"


def worst(found: dict[str, Estimate]) -> str:
    """The highest over-refusal rate of any suite."""
    return share(max(found.values(), key=lambda rate: rate.value, default=None))


def refusals(found: dict[str, Estimate]) -> str:
    """Over-refusal, suite by suite."""
    return ", ".join(f"{name} {share(rate)}" for name, rate in found.items()) or "–"


def _development(report: TuneReport) -> Figure | None:
    points = [
        ArmPoint(
            candidate.name,
            candidate.utility_change.value,
            candidate.harmful.value,
            candidate.utility_change.interval,
            candidate.harmful.interval,
            chosen=candidate.name == report.chosen,
        )
        for candidate in report.candidates
        if candidate.utility_change is not None and candidate.harmful is not None
    ]
    # Documents differ between candidates: against the fine-tuned adapter on the same ones they compare.
    axis = "against the fine-tuned adapter, development split"
    return _figure(report, points, axis, Limits(None, report.worst_change))


def _final(report: TuneReport) -> Figure | None:
    points = [
        ArmPoint(
            arm.name,
            arm.utility,
            arm.harmful.value,
            arm.utility_interval,
            arm.harmful.interval,
            chosen=arm.name == CHOSEN_ARM,
        )
        for arm in report.final
        if arm.utility is not None
    ]
    return _figure(report, points, "final split", NO_LIMITS)


def _figure(report: TuneReport, points: list[ArmPoint], axis: str, limits: Limits) -> Figure | None:
    if not points:
        return None
    metric = report.utility.rpartition("/")[2]
    return pareto_figure(
        points,
        utility=f"{metric}, {axis}",
        higher_is_better=report.higher_is_better,
        limits=limits,
    )
