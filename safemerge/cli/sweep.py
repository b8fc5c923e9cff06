"""``safemerge sweep``: many merges weighed against each other, from one pass over the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.cli import flags
from safemerge.core.options import SIZES

if TYPE_CHECKING:
    from safemerge.config.commands import SweepFileConfig
    from safemerge.reports.adapters import SweepReport

GRID = "The grid: every method with every choice of layers and all weights; each may be repeated"

EPILOG = (
    flags.methods_help()
    + "\n\n"
    + flags.epilog(
        "Three shares of the layers with two weights each, in a table:",
        "safemerge sweep --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
        "--aligned-model org/model-instruct --unaligned-model org/model "
        "--quantile 0.25 --quantile 0.5 --quantile 0.75 --weights 0.8 --weights 0.5",
        "The same from a file, and two of the candidates as adapters:",
        "safemerge sweep --config sweep.yaml --output ./sweep "
        "--write exact_q0.5_w0.8_0.2 --write exact_q0.75_w0.5_0.5",
    )
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="sweep", epilog=EPILOG)(sweep)


def _weights(text: str) -> tuple[float, ...]:
    """One weight or two, separated by a comma.

    Raises:
        typer.BadParameter: it is neither.
    """
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    if len(weights) not in (1, 2):
        raise typer.BadParameter(f"expected a weight such as 0.8, or two such as 0.8,0.2, got {text!r}")
    return weights


def _many(text: str, *names: str, **settings: Any) -> Any:
    return flags.option(GRID, text, *names, **settings)


def sweep(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with inputs, grid and output; flags override it.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(help="Folder to write report, page and chosen adapters to.", show_default=False),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(
            help="Write this candidate as an adapter, or all of them; may be repeated.", metavar="NAME|all"
        ),
    ] = None,
    device: flags.Device = "cpu",
    hash_files: flags.HashFiles = False,
    as_json: flags.AsJson = False,
    task_adapter: flags.TaskAdapter = None,
    safety_adapter: flags.SafetyAdapter = None,
    aligned_model: flags.AlignedModel = None,
    unaligned_model: flags.UnalignedModel = None,
    method: Annotated[
        list[str] | None,
        _many(
            f"Method, see below. {flags.default('exact')}",
            "--method",
            parser=flags.method_name,
            metavar="NAME",
            autocompletion=flags.complete_method,
        ),
    ] = None,
    threshold: Annotated[list[float] | None, _many("Merge layers with a cosine below it.")] = None,
    quantile: Annotated[
        list[float] | None,
        _many(f"Merge this share of the layers. {flags.default('0.5 where nothing else chooses')}"),
    ] = None,
    count: Annotated[list[int] | None, _many("Merge so many layers.")] = None,
    weights: Annotated[
        list[Any] | None,
        _many("Weight of the task adapter, or both: 0.7,0.3.", "--weights", parser=_weights, metavar="α[,β]"),
    ] = None,
    density: Annotated[list[float] | None, _many("Share of entries that methods which prune keep.")] = None,
    components: flags.Components = None,
    coefficients: Annotated[
        list[Path] | None,
        _many("A file of safemerge learn, which is a candidate beside the grid's.", metavar="FILE"),
    ] = None,
    rank: flags.Rank = None,
    max_error: flags.MaxError = None,
    seed: flags.Seed = None,
    on_undefined: flags.WhereUndefined = None,
) -> None:
    """Weigh merges of one adapter against each other: layers merged, change, share of safety.

    Reads the checkpoints once, whatever the number of candidates, and writes adapters for
    those alone that --write names.
    """
    given = {
        "task_adapter": task_adapter,
        "safety_adapter": safety_adapter,
        "aligned_model": aligned_model,
        "unaligned_model": unaligned_model,
        "output": output,
        "write": write,
        "grid.methods": method,
        "grid.thresholds": threshold,
        "grid.quantiles": quantile,
        "grid.counts": count,
        "grid.weights": None if weights is None else [pair if len(pair) > 1 else pair[0] for pair in weights],
        "grid.densities": density,
        "grid.components": components,
        "grid.coefficients": None if coefficients is None else [str(file) for file in coefficients],
        "grid.rank": rank,
        "grid.max_error": max_error,
        "grid.seed": seed,
        "grid.on_undefined": on_undefined,
    }
    flags.unique(ctx, {"rank": rank, "max_error": max_error}, SIZES)
    settings = _settings(
        config, {name: value for name, value in given.items() if value is not None and value != []}
    )
    report = _sweep(settings, hash_files, device)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report)
        if settings.output is not None:
            typer.echo(settings.output)


def _settings(config: Path | None, given: dict[str, Any]) -> SweepFileConfig:
    from safemerge.config.load import load_sweep_file, sweep_of_flags

    if config is None:
        if missing := [
            flags.flag(name) for name in flags.INPUT_NAMES if name not in given and name != "safety_adapter"
        ]:
            raise typer.BadParameter(f"missing: {', '.join(missing)}", param_hint="flags")
        return sweep_of_flags(given)
    # A choice on the command line stands for all that the file says of it.
    for names, empty in ((("thresholds", "quantiles", "counts"), []), (SIZES, None)):
        if any(f"grid.{name}" in given for name in names):
            given = {f"grid.{name}": empty for name in names} | given
    settings = load_sweep_file(config, given)
    return settings.model_copy(update=flags.inputs_of(settings))


def _sweep(settings: SweepFileConfig, hash_files: bool, device: str) -> SweepReport:
    from safemerge.cli.advice import option_warnings
    from safemerge.cli.tables import progress_bar, warn
    from safemerge.engine.sweeping import candidates, sweep_adapters

    found = candidates(settings.grid)
    for options in found.values():
        warn(*option_warnings(options))
    with progress_bar() as progress:
        report = sweep_adapters(
            settings.task_adapter,
            settings.safety_adapter,
            settings.aligned_model,
            settings.unaligned_model,
            candidates=found,
            output=settings.output,
            write=settings.write,
            hash_files=hash_files,
            device=device,
            progress=progress,
        )
    warn(*report.warnings)
    return report


def _print(report: SweepReport) -> None:
    from safemerge.cli.tables import console, table
    from safemerge.plots.sweep import COLUMNS, candidate_row

    out = console()
    title = f"{len(report.candidates)} candidates, {report.layers} layers"
    out.print(table(COLUMNS, map(candidate_row, report.candidates), title))
    out.print(
        "change: ‖ΔW_merged − ΔW_task‖ / ‖ΔW_task‖. to safety: cosine between ΔW_merged and ΔW_safety.\n"
        "error: the largest of a layer, of storing its update at that rank",
        soft_wrap=True,
    )
