"""``safemerge export``: a full model with an adapter, or a merge of two, folded into its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.core import methods
from safemerge.core.options import DEFAULT_THRESHOLD, OnUndefined

if TYPE_CHECKING:
    from safemerge.engine.exporting import ExportReport

ADAPTER = "An adapter as it is: each a folder or a hub id, with @revision or without"
MERGE = "Or a merge of two, which is stored nowhere else"

EPILOG = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "A repaired adapter, for servers that load no adapters:",
        "[cyan]safemerge export --model org/model-instruct --adapter ./repaired --output ./model[/cyan]",
        "A merge of full rank, which an adapter would have to compress:",
        "[cyan]safemerge export --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
        "--aligned-model org/model-instruct --unaligned-model org/model --method exact --quantile 0.5 "
        "--output ./model --push-to-hub org/model-repaired --private[/cyan]",
    )
)


class StoredDtype(StrEnum):
    """What float tensors are stored as."""

    KEEP = "keep"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def register(app: typer.Typer) -> None:
    """Add ``export`` to the command line."""
    app.command(name="export", epilog=EPILOG)(export)


def _in(panel: str, text: str, **settings: Any) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=False, **settings)


def _method(name: str) -> str:
    if name not in methods.names():
        raise typer.BadParameter(f"expected one of {', '.join(methods.names())}, got {name!r}")
    return name


def export(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist.", show_default=False)],
    model: Annotated[str | None, _in(ADAPTER, "The model that the adapter belongs to.")] = None,
    adapter: Annotated[str | None, _in(ADAPTER, "LoRA or DoRA adapter.")] = None,
    task_adapter: Annotated[str | None, _in(MERGE, "LoRA adapter fine-tuned on the task.")] = None,
    safety_adapter: Annotated[str | None, _in(MERGE, "LoRA adapter fine-tuned to refuse harm.")] = None,
    aligned_model: Annotated[str | None, _in(MERGE, "The model that both adapters belong to.")] = None,
    unaligned_model: Annotated[str | None, _in(MERGE, "The same model before it was aligned.")] = None,
    method: Annotated[
        str | None,
        _in(
            MERGE,
            f"One of {', '.join(methods.names())}. [dim]\\[default: {methods.DEFAULT}][/dim]",
            parser=_method,
            metavar="NAME",
            autocompletion=methods.names,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        _in(MERGE, f"Merge layers whose cosine lies below it. [dim]\\[default: {DEFAULT_THRESHOLD}][/dim]"),
    ] = None,
    quantile: Annotated[
        float | None,
        _in(MERGE, "Merge this share of the layers, those with the lowest cosines.", min=0, max=1),
    ] = None,
    count: Annotated[
        int | None, _in(MERGE, "Merge so many layers, those with the lowest cosines.", min=0)
    ] = None,
    modules: Annotated[
        list[str] | None, _in(MERGE, "Merge these layers: a path or a pattern with *; may be repeated.")
    ] = None,
    task_weight: Annotated[
        float | None, _in(MERGE, "Weight of the task adapter. [dim]\\[default: the method's][/dim]")
    ] = None,
    safety_weight: Annotated[
        float | None, _in(MERGE, "Weight of the safety adapter. [dim]\\[default: the method's][/dim]")
    ] = None,
    on_undefined: Annotated[
        OnUndefined | None,
        _in(MERGE, "What to do where a cosine is undefined. [dim]\\[default: keep][/dim]"),
    ] = None,
    density: Annotated[float | None, _in(MERGE, "Share of entries that methods which prune keep.")] = None,
    seed: Annotated[int | None, _in(MERGE, "Seed of random draws. [dim]\\[default: 0][/dim]")] = None,
    dtype: Annotated[
        StoredDtype, typer.Option(help="Store float tensors as this; keep leaves each its own.")
    ] = StoredDtype.KEEP,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="Upload the folder there once it is whole.", show_default=False
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make that repository private, where it is new.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout and no summary.")
    ] = False,
) -> None:
    """Write a full model with an adapter, or with a merge of two, folded into its weights.

    Goes through the checkpoint block by block and loads no model. Keeps its sharding,
    names and dtypes, and copies config, tokenizer, chat template and licence.
    """
    one = {"model": model, "adapter": adapter}
    two = {
        "task_adapter": task_adapter,
        "safety_adapter": safety_adapter,
        "aligned_model": aligned_model,
        "unaligned_model": unaligned_model,
        "method": method,
        "threshold": threshold,
        "quantile": quantile,
        "count": count,
        "modules": modules or None,
        "task_weight": task_weight,
        "safety_weight": safety_weight,
        "on_undefined": on_undefined,
        "density": density,
        "seed": seed,
    }
    merges = _merges(ctx, one, two)
    if private and push_to_hub is None:
        ctx.fail("--private: expected with --push-to-hub, got alone")

    from safemerge.engine.exporting import export_adapter, export_merge
    from safemerge.storage.hub_upload import HubTarget

    hub = None if push_to_hub is None else HubTarget(push_to_hub, private=private)
    given: dict[str, Any] = {name: value for name, value in (one | two).items() if value is not None}
    given |= {"output": output, "dtype": dtype.value, "hub": hub}
    with _progress() as (scored, written):
        if merges:
            given.setdefault("safety_adapter", None)
            report = export_merge(**given, scoring_progress=scored, progress=written)
        else:
            report = export_adapter(**given, progress=written)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print_summary(report, output, push_to_hub)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _merges(ctx: typer.Context, one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether the flags are those of a merge; leaves with a usage error where they are of both or neither."""
    as_one, as_two = (
        [f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None]
        for flags in (one, two)
    )
    if as_one and as_two:
        ctx.fail(f"{', '.join(as_one)} and {', '.join(as_two)} do not go together: give one adapter or two")
    required = ("task_adapter", "aligned_model", "unaligned_model") if as_two else ("model", "adapter")
    if missing := [f"--{name.replace('_', '-')}" for name in required if (one | two)[name] is None]:
        ctx.fail(f"missing: {', '.join(missing)}")
    return bool(as_two)


ProgressCallback = Callable[[int, int, str], None]


@contextmanager
def _progress() -> Iterator[tuple[ProgressCallback, ProgressCallback]]:
    """Bars over layers scored and bytes written, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[what]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}[/dim]"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def stage(what: str) -> ProgressCallback:
            task = bars.add_task("", total=None, what=what, visible=False)

            def advance(done: int, total: int, name: str) -> None:
                bars.update(task, completed=done, total=total, description=escape(name), visible=True)

            return advance

        yield stage("scoring layers"), stage("writing weights")


def _print_summary(report: ExportReport, output: Path, repository: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = {
        "tensors changed": str(len(report.changed)),
        "dtype": "each its own" if report.dtype == "keep" else report.dtype,
        "weights": f"{report.n_bytes / 1e9:.3g} GB",
    }
    if report.method is not None:
        rows["method"] = report.method
    if report.untied:
        rows["output embedding"] = "has weights of its own now: tie_word_embeddings is false in config.json"
    rows["written to"] = str(output)
    if repository is not None:
        rows["uploaded to"] = f"https://huggingface.co/{repository}"
    table = Table(show_header=False, title="Full model", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console().print(table)
