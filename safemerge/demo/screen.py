"""The demo's last screen: every arm beside the others, what was repaired, the verdicts, and where to look."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safemerge.arms import ALIGNED, ARM_TITLES, FINE_TUNED, SAFEMERGE, SCALE_SELECTED
from safemerge.errors import DataError
from safemerge.gate import utility_gain
from safemerge.gate.rendering import COLOURS, MARKS, headline
from safemerge.records import Estimate, EvaluationReport, GateDecision, SuiteKind, SuiteReport
from safemerge.release.findings import findings


def arms_table(reports: Mapping[str, EvaluationReport]) -> Table:
    """Arms by figures: utility, gain kept, harmful rate, over-refusal, each with its 95 % interval."""
    shown = [arm for arm in ARM_TITLES if arm in reports] + sorted(reports.keys() - ARM_TITLES.keys())
    first = reports[shown[0]]
    table = Table(
        title="Every arm on prompts and documents that no choice has seen",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("arm", overflow="fold")

    def figures(*lines: str) -> None:
        table.add_column("\n".join(lines), justify="right", overflow="fold")

    if first.utility:
        better = "higher" if first.utility.higher_is_better else "lower"
        figures("utility", _words(first.utility.metric), f"({better} is", "better)")
        figures("gain kept", "[95 %]")
    for suite in first.suites:
        kind = ("harmful", "rate") if suite.kind is SuiteKind.HARMFUL else ("over-", "refusal")
        figures(*kind, _words(suite.suite), f"n={suite.n}", "[95 %]")
    for arm in shown:
        report = reports[arm]
        cells = [ARM_TITLES.get(arm, arm)]
        if first.utility:
            cells += [_utility(report), _gain(arm, reports)]
        cells += [_rate(suite) for suite in report.suites]
        table.add_row(*cells, style="bold" if arm == SAFEMERGE else "")
    return table


def verdict_panel(decision: GateDecision, title: str) -> Panel:
    """One verdict, with every rule."""
    colour = COLOURS[decision.verdict]
    lines = [Text(headline(decision), style=f"bold {colour}")]
    for rule in decision.rules:
        mark = (f"{MARKS[rule.outcome]} ", COLOURS[rule.outcome])
        lines.append(Text.assemble(mark, rule.explanation))
    lines += [Text(f"! {warning}", style="yellow") for warning in decision.warnings]
    return Panel(Group(*lines), title=title, title_align="left", border_style=colour)


def last_screen(
    reports: Mapping[str, EvaluationReport],
    verdicts: Mapping[str, GateDecision],
    outlook: list[str],
) -> RenderableType:
    """The whole screen.

    Args:
        reports: arm to figures.
        verdicts: title to decision, in order.
        outlook: lines on what to open or type next.
    """
    parts: list[RenderableType] = [arms_table(reports), Text("")]
    repair = (reports.get(arm) for arm in (ALIGNED, FINE_TUNED, SAFEMERGE, SCALE_SELECTED))
    parts += [Text(line) for line in findings(*repair)]
    if any(suite.judge.smoke for report in reports.values() for suite in report.suites):
        parts.append(
            Text(
                "Judged by refusal phrases, a smoke judge: enough for a demo, not for a release.",
                style="yellow",
            )
        )
    parts.append(Text(""))
    parts += [verdict_panel(decision, title) for title, decision in verdicts.items()]
    parts.append(Text("\n".join(outlook)))
    return Group(*parts)


def _words(name: str) -> str:
    """A name that may break between its parts."""
    return name.replace("_", " ")


def _utility(report: EvaluationReport) -> str:
    return "–" if report.utility is None or report.utility.value is None else f"{report.utility.value:.3f}"


def _gain(arm: str, reports: Mapping[str, EvaluationReport]) -> str:
    if arm in (ALIGNED, FINE_TUNED):
        return "0 %" if arm == ALIGNED else "100 %"
    try:
        share = utility_gain(reports[arm], reports.get(ALIGNED), reports.get(FINE_TUNED)).share
    except DataError:
        return "–"
    return "cannot tell" if share is None else _share(share)


def _rate(suite: SuiteReport) -> str:
    if suite.rate is None or suite.interval is None:
        return "–"
    return f"{100 * suite.rate:.1f} %\n[{100 * suite.interval.low:.0f}–{100 * suite.interval.high:.0f}]"


def _share(estimate: Estimate) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    return f"{100 * estimate.value:.0f} %\n[{100 * low:.0f}–{100 * high:.0f}]"
