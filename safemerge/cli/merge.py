"""``safemerge merge``: repair a fine-tuned LoRA adapter with a safety adapter.

Two families of flags lead to one merge: safemerge's own, and those of the script
published with the paper (:mod:`safemerge.cli.published`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.cli.published import PublishedFlags, formula_notice, merge_arguments
from safemerge.core import methods
from safemerge.core.options import DEFAULT_THRESHOLD, OnUndefined

if TYPE_CHECKING:
    from safemerge.records import MergeReport

INPUTS = "Inputs: each a folder or a hub id, with @revision or without"
CHOICE = "Which layers are merged"
WAY = "How they are merged"
PUBLISHED = "Flags of the published script (not to be mixed with those above)"

# Typer keeps the lines of an epilog apart only where they are paragraphs.
EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "Half of the layers, those with the lowest cosines:",
        "[cyan]safemerge merge --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
        "--aligned-model org/model-instruct --unaligned-model org/model --quantile 0.5 "
        "--output ./repaired[/cyan]",
        "A fixed threshold and other weights, with the report for a script:",
        "[cyan]safemerge merge … --threshold 0.35 --task-weight 0.7 --output ./repaired --json "
        "| jq .layers[/cyan]",
        "As the published script:",
        "[cyan]safemerge merge --base_model_id org/model-instruct --finetuned_model_id ./gsm8k-lora "
        "--safety_model_id ./safety-lora --safelora_unaligned_model_id org/model "
        "--safelora_aligned_model_id org/model-instruct --cos_threshold 0.35 --output_path ./merged[/cyan]",
    )
)


def register(app: typer.Typer) -> None:
    """Add ``merge`` to the command line."""
    app.command(name="merge", epilog=EPILOG)(merge)


def _own(panel: str, text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=False, **settings)


def _published(name: str, text: str, **settings: Any) -> Any:
    return typer.Option(f"--{name}", help=text, rich_help_panel=PUBLISHED, show_default=False, **settings)


def _method(name: str) -> str:
    if name not in methods.names():
        raise typer.BadParameter(f"expected one of {', '.join(methods.names())}, got {name!r}")
    return name


def merge(
    ctx: typer.Context,
    task_adapter: Annotated[str | None, _own(INPUTS, "LoRA adapter fine-tuned on the task.")] = None,
    safety_adapter: Annotated[str | None, _own(INPUTS, "LoRA adapter fine-tuned to refuse harm.")] = None,
    aligned_model: Annotated[str | None, _own(INPUTS, "The model that both adapters belong to.")] = None,
    unaligned_model: Annotated[str | None, _own(INPUTS, "The same model before it was aligned.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder to write; must not exist.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None,
        _own(CHOICE, f"Merge layers whose cosine lies below it. [dim]\\[default: {DEFAULT_THRESHOLD}][/dim]"),
    ] = None,
    quantile: Annotated[
        float | None,
        _own(CHOICE, "Merge this share of the layers, those with the lowest cosines.", min=0, max=1),
    ] = None,
    on_undefined: Annotated[
        OnUndefined | None,
        _own(
            CHOICE,
            "What to do where a cosine is undefined, because alignment did not change the layer or the "
            "update is zero. [dim]\\[default: keep; merge with the flags of the published script][/dim]",
        ),
    ] = None,
    method: Annotated[
        str | None,
        _own(
            WAY,
            f"One of {', '.join(methods.names())}. [dim]\\[default: {methods.DEFAULT}][/dim]",
            parser=_method,
            metavar="NAME",
            autocompletion=methods.names,
        ),
    ] = None,
    task_weight: Annotated[
        float | None,
        _own(WAY, "Weight of the task adapter in merged layers. [dim]\\[default: 0.8 for exact][/dim]"),
    ] = None,
    safety_weight: Annotated[
        float | None,
        _own(WAY, "Weight of the safety adapter there. [dim]\\[default: 1 minus the task's][/dim]"),
    ] = None,
    hash_files: Annotated[
        bool,
        typer.Option(
            "--hash-files", help="Digest whole checkpoint files, not only the tensors that were read."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout and no summary.")
    ] = False,
    base_model_id: Annotated[
        str | None, _published("base_model_id", "Accepted; a merge of files does not need it.")
    ] = None,
    finetuned_model_id: Annotated[str | None, _published("finetuned_model_id", "Task adapter.")] = None,
    safety_model_id: Annotated[str | None, _published("safety_model_id", "Safety adapter.")] = None,
    safelora_unaligned_model_id: Annotated[
        str | None, _published("safelora_unaligned_model_id", "Unaligned model.")
    ] = None,
    safelora_aligned_model_id: Annotated[
        str | None, _published("safelora_aligned_model_id", "Aligned model.")
    ] = None,
    cos_threshold: Annotated[float | None, _published("cos_threshold", "Threshold.")] = None,
    default_merge_ratio: Annotated[
        float | None, _published("default_merge_ratio", "r: weights 1 − r and r, whatever --weighting says.")
    ] = None,
    weighting: Annotated[str | None, _published("weighting", 'Weights, such as "[0.8, 0.2]".')] = None,
    merge_type: Annotated[str | None, _published("merge_type", "linear or dare_linear.")] = None,
    density: Annotated[
        float | None, _published("density", "Share of entries that dare_linear keeps.")
    ] = None,
    output_path: Annotated[
        str | None, _published("output_path", "Parent of the folder to write; may exist.")
    ] = None,
    seed: Annotated[int | None, _published("seed", "Seed of dare_linear's draws.")] = None,
) -> None:
    """Merge a task adapter with a safety adapter where fine-tuning left the safe subspace.

    Reads the checkpoints tensor by tensor and loads no model. Writes an adapter that
    PEFT loads, safemerge_report.json and a plot of every layer, safemerge_layers.html.
    """
    own = {
        "task_adapter": task_adapter,
        "safety_adapter": safety_adapter,
        "aligned_model": aligned_model,
        "unaligned_model": unaligned_model,
        "output": output,
        "threshold": threshold,
        "quantile": quantile,
        "method": method,
        "task_weight": task_weight,
        "safety_weight": safety_weight,
    }
    published = PublishedFlags(
        base_model_id=base_model_id,
        finetuned_model_id=finetuned_model_id,
        safety_model_id=safety_model_id,
        safelora_unaligned_model_id=safelora_unaligned_model_id,
        safelora_aligned_model_id=safelora_aligned_model_id,
        cos_threshold=cos_threshold,
        default_merge_ratio=default_merge_ratio,
        weighting=weighting,
        merge_type=merge_type,
        density=density,
        output_path=output_path,
        seed=seed,
    )
    as_published = [f"--{name}" for name, value in vars(published).items() if value is not None]
    as_own = [f"--{name.replace('_', '-')}" for name, value in own.items() if value is not None]
    if as_published and as_own:
        ctx.fail(
            f"{', '.join(as_own)} and {', '.join(as_published)} belong to two families of flags, safemerge's "
            "own and the published script's: use one"
        )
    arguments = merge_arguments(published, on_undefined) if as_published else _own_arguments(ctx, own)
    arguments.setdefault("on_undefined", on_undefined or "keep")

    from safemerge.merging import merge_adapters

    with _progress_bar() as progress:
        report = merge_adapters(**arguments, hash_files=hash_files, progress=progress)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print_summary(report, arguments["output"])
    if as_published:
        typer.echo(formula_notice(arguments), err=as_json)
    for warning in (*report.warnings, threshold_warning(report)):
        if warning:
            typer.echo(f"warning: {warning}", err=True)


def _own_arguments(ctx: typer.Context, own: dict[str, Any]) -> dict[str, Any]:
    """Our flags as keyword arguments of ``merge_adapters``; leaves with a usage error."""
    required = ("task_adapter", "safety_adapter", "aligned_model", "unaligned_model", "output")
    if missing := [f"--{name.replace('_', '-')}" for name in required if own[name] is None]:
        ctx.fail(f"missing: {', '.join(missing)}")
    if own["threshold"] is not None and own["quantile"] is not None:
        ctx.fail("expected --threshold or --quantile, got both")
    given = {name: value for name, value in own.items() if value is not None}
    return given | {"output": Path(given["output"])}


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar over the layers on stderr, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("scoring layers"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}[/dim]"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        layers = bar.add_task("", total=None)

        def advance(done: int, total: int, module: str) -> None:
            bar.update(layers, completed=done, total=total, description=escape(module))

        yield advance


def _print_summary(report: MergeReport, output: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    merged = sum(layer.merged for layer in report.layers)
    cosines = [layer.cosine for layer in report.layers if layer.cosine is not None]
    task, safety = report.weights
    threshold = "none" if report.threshold is None else f"{report.threshold:.4g}"
    if report.quantile is not None:
        threshold += f" (quantile {report.quantile:g})"
    rows = {
        "layers merged": f"{merged} of {len(report.layers)}",
        "threshold": threshold,
        "cosines": f"min {min(cosines):.3f} · median {median(cosines):.3f} · max {max(cosines):.3f}"
        if cosines
        else "none defined",
        "method": f"{report.method}, weights {task:g} (task) and {safety:g} (safety)",
    }
    if undefined := len(report.layers) - len(cosines):
        rows["cosine undefined"] = f"{undefined} layers (see their reason in the report)"
    if report.safety_only_layers:
        rows["left out"] = f"{len(report.safety_only_layers)} layers that only the safety adapter has"
    rows["written to"] = str(output)
    table = Table(show_header=False, title="Merged adapter", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console().print(table)


def threshold_warning(report: MergeReport) -> str | None:
    """What to say of a threshold that told no layers apart; None where it did, or was not meant to."""
    cosines = sorted(layer.cosine for layer in report.layers if layer.cosine is not None)
    threshold = report.threshold
    if threshold is None or report.quantile is not None or not cosines or not 0 < threshold <= 1:
        return None
    below = sum(cosine < threshold for cosine in cosines)
    if 0 < below < len(cosines):
        return None
    return (
        f"threshold {threshold:g} merged {'no layer' if below == 0 else 'every layer'}: the cosines of these "
        f"models lie between {cosines[0]:.3g} and {cosines[-1]:.3g}. Cosines differ from pair to pair; "
        f"--quantile 0.5 merges the half with the lowest: here, a threshold of {median(cosines):.3g}"
    )
