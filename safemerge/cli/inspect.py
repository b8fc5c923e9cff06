"""``safemerge inspect``: what is in adapters, and whether they fit each other and the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog
from safemerge.errors import EXIT_ERROR

if TYPE_CHECKING:
    from safemerge.reports.adapters import AdapterSummary, InspectionReport

EPILOG = epilog(
    "safemerge inspect ./gsm8k-lora",
    "safemerge inspect ./gsm8k-lora ./safety-lora --aligned-model org/model-instruct "
    "--unaligned-model org/model",
    "safemerge inspect ./gsm8k-lora --json | jq .adapters[0].ranks",
    exit_codes=f"Exit code: 0 nothing in the way of a merge, {EXIT_ERROR} a problem, which is listed; "
    "2 wrong usage.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="inspect", epilog=EPILOG)(inspect)


def inspect(
    adapters: Annotated[
        list[str], typer.Argument(help="Folders or hub ids.", metavar="ADAPTER...", show_default=False)
    ],
    aligned_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the model that they should belong to.")
    ] = None,
    unaligned_model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the same model before it was aligned.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look into adapters: ranks, scales, modules, size, and whether they fit together.

    Works on adapters alone; the models' weights are not read.
    """
    from safemerge.engine.inspection import inspect_adapters

    report = inspect_adapters(adapters, aligned_model=aligned_model, unaligned_model=unaligned_model)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(EXIT_ERROR)


def _print(report: InspectionReport) -> None:
    from rich.markup import escape

    from safemerge.cli.tables import console, facts

    out = console()
    for summary in report.adapters:
        out.print(facts(_rows(summary), title=escape(summary.name)))
    for problem in report.problems:
        out.print(f"[bold red]problem:[/] {escape(problem)}", soft_wrap=True)
    for note in report.notes:
        out.print(f"[bold]note:[/] {escape(note)}", soft_wrap=True)
    if not report.problems:
        out.print(f"[bold green]fits:[/] {_verdict(report)}", soft_wrap=True)


def _verdict(report: InspectionReport) -> str:
    models = [
        role
        for role, model in (("aligned", report.aligned_model), ("unaligned", report.unaligned_model))
        if model
    ]
    said = "adapters that can be merged" if len(report.adapters) > 1 else "an adapter that can be merged"
    return said + (f", for the {' and the '.join(models)} model" if models else "")


def _rows(summary: AdapterSummary) -> dict[str, str]:
    from safemerge.cli.tables import size

    rslora = " (rsLoRA: alpha / √rank)" if summary.rslora else ""
    rows = {
        "base model": summary.base_model or "not named",
        "modules": f"{len(summary.modules)}: {summary.targets}" if summary.modules else summary.targets,
    }
    if not summary.readable:
        return rows
    rows |= {
        "rank": _counted({str(rank): count for rank, count in summary.ranks.items()}),
        "alpha": _counted(summary.alphas),
        "scale": _counted(summary.scales) + rslora,
        "parameters": f"{summary.parameters:,} in {summary.dtype}, {size(summary.size_bytes or 0)}",
        "norm of ΔW": f"{summary.norm:.4g}",
        "digest": f"sha256 {summary.digest}",
    }
    return rows


def _counted(figures: dict[str, int]) -> str:
    """A single figure alone; several with the number of modules that have it."""
    if len(figures) == 1:
        return next(iter(figures))
    return ", ".join(f"{figure} in {count} modules" for figure, count in figures.items())
