"""``safemerge diff``: two adapters, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safemerge.reports.adapters import DifferenceReport, LayerDifference

EXIT_DIFFERENT = 5
"""Exit code of ``--check`` where the adapters differ; 1 would mean that the gate blocked."""

MOST_ROWS = 40
"""Layers that are listed unless all are asked for."""

EPILOG = epilog(
    "safemerge diff ./gsm8k-lora ./repaired",
    "safemerge diff ./exact ./rank-16 --check --tolerance 0.01 && echo close enough",
    exit_codes="Exit code: 0 compared (with --check: and the same within the tolerance), "
    f"{EXIT_DIFFERENT} different (with --check alone), 2 wrong usage, 4 an adapter that cannot be read.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="diff", epilog=EPILOG)(diff)


def diff(
    a: Annotated[str, typer.Argument(help="Adapter that differences are relative to.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The other one: folder or hub id.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--check", help="Tell by the exit code whether they differ.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="Largest relative difference that counts as none.")] = 1e-6,
    all_layers: Annotated[
        bool, typer.Option("--all", help="List every layer, however many there are.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the updates of two adapters layer by layer, whatever their ranks and scales.

    The difference is ‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖, from the factors alone, in float64.
    """
    from safemerge.engine.comparing import compare_adapters

    report = compare_adapters(a, b, tolerance=tolerance)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report, all_layers)
    if check and not report.same:
        raise typer.Exit(EXIT_DIFFERENT)


def _print(report: DifferenceReport, all_layers: bool) -> None:
    from rich.markup import escape

    from safemerge.cli.tables import console, table

    out = console()
    different = [
        layer for layer in report.layers if layer.difference is None or layer.difference > report.tolerance
    ]
    shown = report.layers if all_layers else tuple(different[:MOST_ROWS])
    if shown:
        out.print(
            table(
                ("layer", "module", "difference", "cosine", "norm of A", "norm of B"), _rows(shown), names=2
            )
        )
    if len(shown) < len(different):
        out.print(f"… and {len(different) - len(shown)} more layers that differ (--all lists every layer)")
    out.print(f"A: {escape(report.a)}\nB: {escape(report.b)}", soft_wrap=True)
    out.print(f"[bold]{escape(summary(report, len(different)))}[/]", soft_wrap=True)


def _rows(layers: Sequence[LayerDifference]) -> list[list[str]]:
    from safemerge.core.module_names import module_kinds, position

    kinds = module_kinds([layer.module for layer in layers])
    rows = []
    for layer in layers:
        norms = ("absent" if norm is None else f"{norm:.4g}" for norm in (layer.norm_a, layer.norm_b))
        figures = (_figure(layer.difference), _figure(layer.cosine), *norms)
        rows.append([position(layer.module), kinds[layer.module], *figures])
    return rows


def summary(report: DifferenceReport, different: int) -> str:
    """The comparison in one line."""
    if report.identical:
        return "identical: the same settings, and tensors of the same bytes"
    overall = "" if report.difference is None else f": relative difference {_figure(report.difference)}"
    cosine = "" if report.cosine is None else f", cosine {_figure(report.cosine)}"
    if report.same:
        return f"the same within {report.tolerance:g}{overall}"
    return f"different in {different} of {len(report.layers)} layers{overall}{cosine}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
