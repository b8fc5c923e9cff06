"""``safemerge gate``: judge an adapter's report by a policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from safemerge.records import GateDecision

EXIT_BLOCKED = 1
"""Exit code where the verdict is that the adapter must not ship."""

EPILOG = epilog(
    "safemerge gate --policy pipeline.yaml --candidate safemerge.json --aligned aligned.json "
    "--fine-tuned fine_tuned.json",
    "safemerge gate --policy policy.yaml --candidate report.json --json | jq .passed",
    exit_codes="Exit code: 0 pass, 1 block, 2 wrong usage, 4 an input that cannot be read.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(gate)


def gate(
    policy: Annotated[
        Path, typer.Option(help="YAML file: a policy, or a pipeline with a gate section.", show_default=False)
    ],
    candidate: Annotated[
        Path, typer.Option(help="Evaluation report of the adapter to judge.", show_default=False)
    ],
    aligned: Annotated[
        Path | None,
        typer.Option(help="Report of the aligned model; needed for the gain kept.", show_default=False),
    ] = None,
    fine_tuned: Annotated[
        Path | None,
        typer.Option(help="Report of the unrepaired adapter; needed for the gain kept.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge an adapter: pass only where every rule of the policy passed.

    Works on reports alone: no model is loaded. What is missing, not finite or not
    comparable blocks.
    """
    from safemerge.config.load import load_policy
    from safemerge.gate import decide
    from safemerge.records import EvaluationReport

    rules = load_policy(policy)
    decision = decide(
        EvaluationReport.read(candidate),
        aligned=None if aligned is None else EvaluationReport.read(aligned),
        fine_tuned=None if fine_tuned is None else EvaluationReport.read(fine_tuned),
        policy=rules,
    )
    if as_json:
        typer.echo(decision.to_json(), nl=False)
    else:
        _print(decision)
    if not decision.passed:
        raise typer.Exit(EXIT_BLOCKED)


def _print(decision: GateDecision) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "rule", "what was found"):
        table.add_column(column)
    colours = {"pass": "green", "fail": "red", "cannot_judge": "yellow"}
    for rule in decision.rules:
        outcome = f"[{colours[rule.outcome]}]{rule.outcome.replace('_', ' ')}[/]"
        table.add_row(outcome, rule.rule, escape(rule.explanation))
    console = Console(highlight=False)
    console.print(table)
    for warning in decision.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    colour = "green" if decision.passed else "red"
    console.print(f"[bold {colour}]{escape(decision.summary())}[/]", soft_wrap=True)
