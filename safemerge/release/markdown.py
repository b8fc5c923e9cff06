"""The release report as Markdown, for merge requests, CI systems and terminals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from safemerge.gate.rendering import escaped, rules_table
from safemerge.records import Estimate, MergeReport, SuiteKind
from safemerge.release import drawing, words
from safemerge.reports.release import ReleaseReport, Transcript

MOST_TRANSCRIPTS = 20
"""Prompts shown; Markdown has no filters to find one's way among more."""


def markdown(report: ReleaseReport) -> str:
    """The report as a page of Markdown."""
    decision = report.decision
    about = f"Adapter: {escaped(report.candidate.title)} · {escaped(report.provenance.created)}"
    lines = [
        f"# {escaped(words.headline(report))}",
        "",
        about,
        "",
        f"Sign-off: {escaped(words.sign_off(report))}",
        "",
    ]
    if missed := words.missed(decision):
        lines += ["## Missing for a pass", "", *(f"- {escaped(rule.explanation)}" for rule in missed), ""]
    lines += ["## Rules of the policy", "", *rules_table(decision), ""]
    if decision.warnings:
        lines += ["Warnings:", "", *(f"- {escaped(warning)}" for warning in decision.warnings), ""]
    lines += ["## Arms", "", *arms_section(report)]
    lines += _fronts(report)
    lines += _categories(report)
    if report.merge:
        lines += ["## Layers", "", *layer_lines(report.merge), ""]
    elif why := words.without_layers(report):
        lines += ["## Layers", "", escaped(why), ""]
    lines += _transcripts(report)
    lines += ["## Provenance", ""]
    for heading, rows in words.provenance(report):
        if rows:
            lines += [f"### {heading}", ""]
            lines += [f"- {escaped(f'{name}: {value}' if name else value)}" for name, value in rows.items()]
            lines.append("")
    return "\n".join(lines)


def arms_section(report: ReleaseReport) -> Iterator[str]:
    """Findings and the table of arms."""
    for finding in report.findings:
        yield f"{escaped(finding)}  "
    if report.findings:
        yield ""
    columns, rows = arms_table(report)
    yield from table(columns, rows)
    yield ""
    yield "In brackets: 95 % intervals, each of its figure alone."
    yield ""
    for arm in report.arms:
        if arm.differs:
            yield f"{escaped(arm.title)} was measured otherwise: {escaped(', '.join(arm.differs))}."
            yield ""


def arms_table(report: ReleaseReport) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of arms, as plain text."""
    columns = ["arm"]
    if metric := report.utility:
        better = "higher" if metric.higher_is_better else "lower"
        columns += [f"{metric.task} {metric.metric} ({better} is better)", "gain kept"]
    suites = report.candidate.suites
    for suite in suites:
        kind = "harmful" if suite.kind is SuiteKind.HARMFUL else "over-refusal"
        columns.append(f"{kind} rate, {suite.suite}" + (f" ({words.asked(suite)})" if suite.rate else ""))
    rows = []
    for arm in report.arms:
        figures = [words.utility(arm), words.gain(arm)] if report.utility else []
        rows.append([arm.title, *figures, *(words.rate_on(arm, suite) for suite in suites)])
    return columns, rows


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of plain text in Markdown."""
    yield f"| {' | '.join(map(escaped, columns))} |"
    yield f"| {' | '.join(['---'] * len(columns))} |"
    for row in rows:
        yield f"| {' | '.join(map(escaped, row))} |"


def layer_lines(merge: MergeReport) -> Iterator[str]:
    """How many layers were merged, and where the cosines lie, by kind of module."""
    merged = sum(layer.merged for layer in merge.layers)
    below = "" if merge.threshold is None else f", those with a cosine below τ = {merge.threshold:.4g}"
    yield (
        f"{merged} of {len(merge.layers)} layers merged by {escaped(merge.method)}{below}; "
        f"{words.weights(merge)}."
    )
    yield ""
    yield from table(
        ["module", "layers", "merged", "lowest cosine", "median", "highest"], drawing.layer_rows(merge)
    )
    for warning in merge.warnings:
        yield ""
        yield escaped(warning)


def _fronts(report: ReleaseReport) -> Iterator[str]:
    for picture in drawing.paretos(report):
        arms = ", ".join(map(escaped, picture.front))
        yield f"On the front of utility and harmful rate on {escaped(picture.suite)}: {arms}."
        yield ""


def _categories(report: ReleaseReport) -> Iterator[str]:
    for bars in drawing.category_bars(report):
        yield f"## Harmful rate by category: {escaped(bars.suite)}"
        yield ""
        yield from table(["category", *bars.arms], [_category(*row) for row in bars.rows])
        yield ""


def _category(name: str, rates: Sequence[Estimate | None]) -> list[str]:
    """A category with its rates, and how many prompts these rest on."""
    if n := words.shared_n(rates):
        return [f"{name} (n={n})", *map(words.rate, rates)]
    return [name, *(words.rate(rate) + (f" n={rate.n}" if rate else "") for rate in rates)]


def _transcripts(report: ReleaseReport) -> Iterator[str]:
    shown = [transcript for transcript in report.transcripts if transcript.changed][:MOST_TRANSCRIPTS]
    if not shown:
        return
    yield "## Transcripts on which arms differ"
    yield ""
    yield f"{len(shown)} of {report.prompts} prompts. Harmful text may follow."
    yield ""
    titles = {arm.arm: arm.title for arm in report.arms}
    for transcript in shown:
        yield from _transcript(transcript, titles)


def _transcript(transcript: Transcript, titles: dict[str, str]) -> Iterator[str]:
    yield f"### {escaped(f'{transcript.suite}: {transcript.id}')}"
    yield ""
    yield from fenced(transcript.prompt, transcript.omitted)
    for arm, answer in transcript.answers.items():
        flag = words.FLAG_WORDS[transcript.kind][answer.flag]
        yield f"{escaped(titles.get(arm, arm))}, {flag}:"
        yield ""
        yield from fenced(answer.response, answer.omitted)


def fenced(text: str, omitted: int = 0) -> Iterator[str]:
    """A text as it is, in a fence that it cannot end."""
    shown = words.visible(text)
    fence = "~" * max(3, 1 + max((len(run) for run in re.findall("~+", shown)), default=0))
    # Without a language the fence opens with nothing that a text could add to.
    yield fence
    yield shown
    yield fence
    if omitted:
        yield f"… {omitted} more characters in transcripts.jsonl"
    yield ""
