"""``safemerge gate``: judge an adapter's report by a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    report_file,
    verdict,
)
from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from safemerge.records import GateDecision

EXIT_CODES = {"pass": 0, "block": 1, "cannot_tell": 3}
"""Exit code by verdict. A pass that wants a signature has that of "cannot tell": a person must decide."""

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
    from safemerge.records import EvaluationReport

    flags = {"aligned": aligned, "fine_tuned": fine_tuned, "champion": champion}
    paths = named_paths(flags, [*(reports or ()), *(more_reports or ())], candidate)
    check_champion(paths, no_champion)
    read = {arm: EvaluationReport.read(report_file(path)) for arm, path in paths.items()}
    decision = verdict(load_policy(policy), f"{policy} with {paths['candidate']}", read, no_champion)
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
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "rule", "what was found"):
        table.add_column(column)
    colours = {"pass": "green", "fail": "red", "not_applicable": "dim"}
    for rule in decision.rules:
        outcome = f"[{colours.get(rule.outcome, 'yellow')}]{rule.outcome.replace('_', ' ')}[/]"
        table.add_row(outcome, rule.rule, escape(rule.explanation))
    console = Console(highlight=False)
    console.print(table)
    for warning in decision.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    colour = {"pass": "green", "block": "red", "cannot_tell": "yellow"}[decision.verdict]
    console.print(f"[bold {colour}]{escape(decision.summary())}[/]", soft_wrap=True)
