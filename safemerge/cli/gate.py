"""``safemerge gate``: judge an adapter's report by a policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from safemerge.gate import GatePolicy
    from safemerge.records import EvaluationReport, GateDecision

EXIT_CODES = {"pass": 0, "block": 1, "cannot_tell": 3}
"""Exit code by verdict."""

ARMS = ("candidate", "aligned", "fine_tuned", "champion")
"""Arms whose reports the gate reads."""

EPILOG = epilog(
    "safemerge gate --policy pipeline.yaml --candidate safemerge.json --aligned aligned.json "
    "--fine-tuned fine_tuned.json --no-champion",
    "safemerge gate --policy policy.yaml --reports candidate=new.json champion=released.json "
    "--junit gate.xml --markdown gate.md",
    "safemerge gate --policy policy.yaml --candidate report.json --json | jq .verdict",
    exit_codes="Exit code: 0 pass, 1 block, 3 cannot tell (where the policy says on_cannot_tell: ask), "
    "2 wrong usage, 4 an input that cannot be read or a policy that cannot be decided on these suites.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(gate)


def gate(
    policy: Annotated[
        Path, typer.Option(help="YAML file: a policy, or a pipeline with a gate section.", show_default=False)
    ],
    candidate: Annotated[
        Path | None, typer.Option(help="Evaluation report of the adapter to judge.", show_default=False)
    ] = None,
    aligned: Annotated[
        Path | None,
        typer.Option(help="Report of the aligned model; needed for the gain kept.", show_default=False),
    ] = None,
    fine_tuned: Annotated[
        Path | None,
        typer.Option(help="Report of the unrepaired adapter; needed for the gain kept.", show_default=False),
    ] = None,
    champion: Annotated[
        Path | None,
        typer.Option(help="Report of the adapter that is released now.", show_default=False),
    ] = None,
    no_champion: Annotated[
        bool,
        typer.Option("--no-champion", help="Nothing is released yet: rules against it do not apply."),
    ] = False,
    reports: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARM=PATH ...",
            help=f"Reports by arm, in one go: {', '.join(ARMS)}.",
            show_default=False,
        ),
    ] = None,
    more_reports: Annotated[list[str] | None, typer.Argument(metavar="ARM=PATH", hidden=True)] = None,
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

    flags = {"candidate": candidate, "aligned": aligned, "fine_tuned": fine_tuned, "champion": champion}
    paths = _paths(flags, [*(reports or ()), *(more_reports or ())])
    if "candidate" not in paths:
        raise typer.BadParameter("expected --candidate or --reports candidate=PATH, got neither")
    if no_champion and "champion" in paths:
        raise typer.BadParameter("expected a champion's report or --no-champion, got both")
    decision = _decide(load_policy(policy), policy, paths, no_champion)
    _write(decision, markdown, junit)
    if as_json:
        typer.echo(decision.to_json(), nl=False)
    else:
        _print(decision)
    if code := EXIT_CODES[decision.verdict]:
        raise typer.Exit(code)


def _paths(flags: Mapping[str, Path | None], reports: list[str]) -> dict[str, Path]:
    """Arm to report, from both ways to name them.

    Raises:
        typer.BadParameter: an arm is unknown or named twice.
    """
    paths = {arm: path for arm, path in flags.items() if path is not None}
    for text in reports:
        arm, equals, path = text.partition("=")
        arm = arm.replace("-", "_")
        if arm not in ARMS or not equals or not path:
            raise typer.BadParameter(f"expected ARM=PATH with an arm of {', '.join(ARMS)}, got {text!r}")
        if arm in paths:
            raise typer.BadParameter(f"expected one report of {arm}, got two")
        paths[arm] = Path(path)
    return paths


def _decide(
    policy: GatePolicy, policy_file: Path, paths: Mapping[str, Path], no_champion: bool
) -> GateDecision:
    """Read the reports and judge.

    Raises:
        DataError: a report cannot be read.
        ConfigError: the policy cannot be decided on the candidate's suites.
    """
    from safemerge.errors import ConfigError
    from safemerge.gate import NO_CHAMPION, Reference, check_decidable, decide, sizes
    from safemerge.records import EvaluationReport

    read: dict[str, EvaluationReport] = {arm: EvaluationReport.read(path) for arm, path in paths.items()}
    try:
        check_decidable(policy, sizes(read["candidate"]))
    except ConfigError as error:
        raise ConfigError(f"{policy_file} with {paths['candidate']}: {error}") from error
    champion = read.get("champion")
    remedy = "name it by --champion, or say --no-champion where nothing is released yet"
    known = Reference(champion) if champion else Reference(remedy=remedy)
    reference = NO_CHAMPION if no_champion else known
    return decide(read["candidate"], read.get("aligned"), read.get("fine_tuned"), policy, reference)


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
