"""``safemerge score``: the cosines of adapters by module and depth, and what thresholds would choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import INPUTS, AsJson, Device, epilog, option

if TYPE_CHECKING:
    from rich.console import Console

    from safemerge.reports.adapters import AdapterCosines, Choice, CosineReport

SUFFIXES = (".html", ".png", ".json")
MOST_GRIDS = 4
"""Adapters that are shown layer by layer; of more, the table alone."""

EPILOG = epilog(
    "safemerge score --task-adapter ./gsm8k-lora --aligned-model org/model-instruct "
    "--unaligned-model org/model",
    "Several adapters in one pass over the checkpoints, as a page to look at:",
    "safemerge score --task-adapter ./a --task-adapter ./b … --output cosines.html",
    "safemerge score … --json | jq '.adapters[0].layers | map(.cosine) | add / length'",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="score", epilog=EPILOG)(score)


def score(
    task_adapter: Annotated[
        list[str],
        option(
            INPUTS, "LoRA adapter fine-tuned on a task; may be repeated.", "--task-adapter", metavar="ADAPTER"
        ),
    ],
    aligned_model: Annotated[str, option(INPUTS, "The model that they belong to.", metavar="MODEL")],
    unaligned_model: Annotated[str, option(INPUTS, "The same model before it was aligned.", metavar="MODEL")],
    output: Annotated[
        Path | None, option(None, "Also write a picture or the figures: FILE.html, FILE.png or FILE.json.")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Show how far each layer left the directions of safety alignment.

    A cosine near 1: the update lies within them; a low one: it left them, and merging
    would repair the layer. Nothing is merged.
    """
    from safemerge.cli.tables import progress_bar, warn
    from safemerge.engine.cosines import score_cosines
    from safemerge.storage.atomic import check_absent

    if output is not None:
        if output.suffix not in SUFFIXES:
            raise typer.BadParameter(
                f"expected a name that ends in {', '.join(SUFFIXES)}, got {output}", param_hint="--output"
            )
        check_absent(output)
    with progress_bar() as progress:
        report = score_cosines(task_adapter, aligned_model, unaligned_model, device=device, progress=progress)
    if output is not None:
        _write(report, output)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report)
        if output is not None:
            typer.echo(str(output))
    warn(*report.warnings)


def _write(report: CosineReport, output: Path) -> None:
    from safemerge.plots.cosines import cosines_html, cosines_png
    from safemerge.storage.atomic import atomic_file

    with atomic_file(output) as partial:
        if output.suffix == ".png":
            partial.write_bytes(cosines_png(report))
        else:
            text = cosines_html(report) if output.suffix == ".html" else report.to_json()
            partial.write_text(text, encoding="utf-8")


def _print(report: CosineReport) -> None:
    from safemerge.cli.tables import console

    out = console()
    if len(report.adapters) > 1:
        _print_comparison(report, out)
    if len(report.adapters) <= MOST_GRIDS:
        for adapter in report.adapters:
            _print_adapter(adapter, out)


def _print_comparison(report: CosineReport, out: Console) -> None:
    from statistics import median

    from safemerge.cli.tables import table

    fixed = [choice.threshold for choice in report.adapters[0].choices if choice.quantile is None]
    rows = []
    for adapter in report.adapters:
        cosines = adapter.cosines
        figures = [f"{of(cosines):.3f}" if cosines else "–" for of in (min, median, max)]
        below = [str(choice.layers) for choice in adapter.choices if choice.quantile is None]
        rows.append([adapter.name, str(len(adapter.layers)), *figures, *below])
    out.print(table(["adapter", "layers", "min", "median", "max", *(f"<{tau:g}" for tau in fixed)], rows))


def _print_adapter(adapter: AdapterCosines, out: Console) -> None:
    from rich.markup import escape

    from safemerge.cli.tables import grid, histogram, spread, table

    cosines = adapter.cosines
    said = f"cosines of {len(adapter.layers)} layers, {spread(cosines)}"
    out.print(f"\n[bold]{escape(adapter.name)}[/]: {said}\n", soft_wrap=True)
    out.print(grid({layer.module: layer.cosine for layer in adapter.layers}, out.width))
    out.print()
    out.print(histogram(cosines, out.width))
    rows = [
        (_flag(choice), f"{choice.layers} of {len(cosines)}", f"{choice.threshold:.4g}")
        for choice in adapter.choices
    ]
    out.print(table(("flag", "layers chosen", "threshold"), rows))


def _flag(choice: Choice) -> str:
    if choice.quantile is None:
        return f"--threshold {choice.threshold:g}"
    return f"--quantile {choice.quantile:g}"
