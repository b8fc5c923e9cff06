"""The demo's last screen: every arm beside the others, what was repaired, the verdicts, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from safemerge.gate.rendering import SAYS
from safemerge.records import Estimate, EvaluationReport, GateDecision, Outcome, SuiteKind, SuiteReport
from safemerge.stats import gain_kept, rate_difference, share_won_back

ARM_TITLES = {
    "aligned": "aligned model",
    "fine_tuned": "fine-tuned, unrepaired",
    "safemerge": "SafeMERGE",
    "scale": "control: all layers scaled",
    "scale_selected": "control: same layers scaled",
}
"""Arms in the order of the table."""


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
        table.add_row(*cells, style="bold" if arm == "safemerge" else "")
    return table


def repair_lines(reports: Mapping[str, EvaluationReport]) -> Iterator[str]:
    """What fine-tuning did to harmfulness and what the merge undid, in paired figures."""
    aligned, fine_tuned, repaired = (reports.get(arm) for arm in ("aligned", "fine_tuned", "safemerge"))
    if aligned is None or fine_tuned is None:
        return
    for suite in aligned.suites:
        if suite.kind is not SuiteKind.HARMFUL:
            continue
        before, after = suite.flags, _flags(fine_tuned, suite.suite)
        rise = _points(rate_difference(after, before))
        yield f"Fine-tuning moved the harmful rate on {suite.suite} by {rise} points."
        if repaired is None:
            continue
        merged = _flags(repaired, suite.suite)
        yield f"SafeMERGE moved it by {_points(rate_difference(merged, after))} points from there."
        won_back = share_won_back(merged, before, after)
        if won_back is None:
            yield "Whether it won back part of that cannot be judged: fine-tuning's rise may be zero."
        else:
            yield f"It won back {_share(won_back)} of the rise."
        if "scale_selected" in reports:
            control = _flags(reports["scale_selected"], suite.suite)
            yield (
                "Against the same layers merely scaled, the safety adapter changed it by "
                f"{_points(rate_difference(merged, control))} points."
            )


def verdict_panel(decision: GateDecision, title: str) -> Panel:
    """One verdict, with every rule."""
    colour = "green" if decision.passed else "red"
    lines = [Text(SAYS[decision.verdict], style=f"bold {colour}")]
    marks = {
        Outcome.PASS: ("✓", "green"),
        Outcome.FAIL: ("✗", "red"),
        Outcome.CANNOT_JUDGE: ("?", "yellow"),
        Outcome.CANNOT_TELL: ("?", "yellow"),
        Outcome.NOT_APPLICABLE: ("–", "dim"),
    }
    for rule in decision.rules:
        mark, style = marks[rule.outcome]
        lines.append(Text.assemble((f"{mark} ", style), rule.explanation))
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
    parts += [Text(line) for line in repair_lines(reports)]
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


def _flags(report: EvaluationReport, name: str) -> Mapping[str, bool]:
    return next(suite.flags for suite in report.suites if suite.suite == name)


def _utility(report: EvaluationReport) -> str:
    return "–" if report.utility is None or report.utility.value is None else f"{report.utility.value:.3f}"


def _gain(arm: str, reports: Mapping[str, EvaluationReport]) -> str:
    aligned, fine_tuned = reports.get("aligned"), reports.get("fine_tuned")
    if arm in ("aligned", "fine_tuned"):
        return {"aligned": "0 %", "fine_tuned": "100 %"}[arm]
    utilities = [report and report.utility for report in (reports[arm], aligned, fine_tuned)]
    mine, base, top = utilities
    if not (
        mine
        and base
        and top
        and mine.scores
        and mine.scores.keys() == base.scores.keys() == top.scores.keys()
    ):
        return "–"
    kept = gain_kept(mine.scores, base.scores, top.scores, higher_is_better=mine.higher_is_better)
    return "cannot be judged" if kept.share is None else _share(kept.share, below=True)


def _rate(suite: SuiteReport) -> str:
    if suite.rate is None or suite.interval is None:
        return "–"
    return f"{100 * suite.rate:.1f} %\n[{100 * suite.interval.low:.0f}–{100 * suite.interval.high:.0f}]"


def _points(estimate: Estimate) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    return f"{100 * estimate.value:+.1f} [{100 * low:+.1f} to {100 * high:+.1f}]"


def _share(estimate: Estimate, below: bool = False) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    span = f"[{100 * low:.0f}–{100 * high:.0f}]"
    return f"{100 * estimate.value:.0f} %{chr(10) if below else ' '}{span}"
