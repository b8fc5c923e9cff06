"""``safemerge gate``: judge an adapter's report by a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.arms import ALIGNED, CANDIDATE, CHAMPION, FINE_TUNED
from safemerge.cli.arms import (
    Aligned,
    Candidate,
    Champion,
    FineTuned,
    MoreReports,
    NoChampion,
    PolicyFile,
    Reports,
    check_champion,
    named_paths,
    verdict,
)
from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from safemerge.records import GateDecision, RuleOutcome

EXIT_CODES = {"pass": 0, "block": 1, "cannot_tell": 3}
"""Exit code by verdict. A pass that wants a signature has that of "cannot tell": a person must decide."""

COLUMNS = ("outcome", "rule", "on", "judged", "limit")
"""``judged``: what the limit is held against, such as the upper end of a harmful rate's interval."""

EPILOG = epilog(
    "safemerge gate --policy pipeline.yaml --candidate safemerge.json --aligned aligned.json "
    "--fine-tuned fine_tuned.json --no-champion",
    "safemerge gate --policy pipeline.yaml --reports eval/* --candidate repaired --no-champion",
    "safemerge gate --policy policy.yaml --reports candidate=new.json champion=released.json "
    "--junit gate.xml --markdown gate.md",
    "safemerge gate --policy policy.yaml --candidate report.json --json | jq .verdict",
    exit_codes="Exit code: 0 pass, 1 block, 3 a person must decide (where the policy says "
    "on_cannot_tell: ask or sign_off: required), "
    "2 wrong usage, 4 an input that cannot be read or a policy that cannot be decided on these suites.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(gate)


def gate(
    policy: PolicyFile,
    candidate: Candidate = None,
    aligned: Aligned = None,
    fine_tuned: FineTuned = None,
    champion: Champion = None,
    no_champion: NoChampion = False,
    reports: Reports = None,
    more_reports: MoreReports = None,
    as_json: AsJson = False,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the verdict as Markdown to this file.", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the verdict as JUnit XML to this file.", show_default=False)
    ] = None,
) -> None:
    """Judge an adapter: pass only where every rule of the policy passed.

    Works on reports alone: no model is loaded. What is missing, not finite or not
    comparable blocks.
    """
    from safemerge.config.load import load_policy
    from safemerge.reports.evaluation import read_evaluation_report

    flags = {ALIGNED: aligned, FINE_TUNED: fine_tuned, CHAMPION: champion}
    paths = named_paths(flags, [*(reports or ()), *(more_reports or ())], candidate)
    check_champion(paths, no_champion)
    read = {arm: read_evaluation_report(path) for arm, path in paths.items()}
    decision = verdict(load_policy(policy), f"{policy} with {paths[CANDIDATE]}", read, no_champion)
    _write(decision, markdown, junit)
    if as_json:
        typer.echo(decision.to_json(), nl=False)
    else:
        _print(decision)
    if code := EXIT_CODES["cannot_tell" if decision.wants_person else decision.verdict]:
        raise typer.Exit(code)


def _write(decision: GateDecision, markdown: Path | None, junit: Path | None) -> None:
    from safemerge.gate import rendering
    from safemerge.storage.atomic import atomic_file

    for path, render in ((markdown, rendering.markdown), (junit, rendering.junit)):
        if path is not None:
            with atomic_file(path, replace=True) as partial:
                partial.write_text(render(decision), encoding="utf-8")


def _print(decision: GateDecision) -> None:
    """The verdict, a table that fits into 80 columns, and a sentence a rule: what decided comes first."""
    from rich.markup import escape

    from safemerge.cli.tables import console, for_terminal, print_sentence, table
    from safemerge.gate.rendering import COLOURS, MARKS, headline

    out = console()
    idle = sum(rule.outcome == "not_applicable" for rule in decision.rules)
    met = sum(rule.outcome == "pass" for rule in decision.rules)
    applies = f"{len(decision.rules) - idle} rules{f' ({idle} not applicable)' if idle else ''}"
    said = f"{headline(decision)}. {for_terminal(decision.arm)} met {met} of {applies}"
    out.print(f"[bold {COLOURS[decision.verdict]}]{escape(said)}[/]", soft_wrap=True)
    out.print(table(COLUMNS, map(_row, decision.rules), names=3, gives_way=2))
    for rule in sorted(decision.rules, key=lambda rule: rule.outcome in ("pass", "not_applicable")):
        print_sentence(out, f"[{COLOURS[rule.outcome]}]{MARKS[rule.outcome]}[/]", rule.explanation)
    for warning in decision.warnings:
        print_sentence(out, "[yellow]warning:[/]", warning)


def _row(rule: RuleOutcome) -> tuple[str, ...]:
    from safemerge.gate.wording import in_its_unit

    # As it stands in the policy, but a long key over two lines: against.champion.max_harmful_increase.
    section, _, key = rule.rule.rpartition(".")
    written = f"{section}.\n{key}" if section else key
    figures = (in_its_unit(key, number, rule.limit) for number in (rule.figure, rule.limit))
    return rule.outcome.replace("_", " "), written, rule.subject, *figures
