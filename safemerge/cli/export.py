"""``safemerge export``: a full model with an adapter, or a merge of two, folded into its weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.cli import flags

if TYPE_CHECKING:
    from safemerge.reports.adapters import ExportReport

ADAPTER = "An adapter as it is; or give the four inputs of a merge, which is then stored nowhere else"

EPILOG = (
    flags.methods_help()
    + "\n\n"
    + flags.epilog(
        "A repaired adapter, for servers that load no adapters:",
        "safemerge export --model org/model-instruct --adapter ./repaired --output ./model",
        "A merge of full rank, which an adapter would have to compress, and its upload:",
        "safemerge export --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
        "--aligned-model org/model-instruct --unaligned-model org/model --method ties --density 0.2 "
        "--output ./model --push-to-hub org/model-repaired --private",
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


def export(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder to write; must not exist.", show_default=False)],
    model: Annotated[str | None, flags.option(ADAPTER, "The model that the adapter belongs to.")] = None,
    adapter: Annotated[str | None, flags.option(ADAPTER, "LoRA or DoRA adapter.")] = None,
    task_adapter: flags.TaskAdapter = None,
    safety_adapter: flags.SafetyAdapter = None,
    aligned_model: flags.AlignedModel = None,
    unaligned_model: flags.UnalignedModel = None,
    threshold: flags.Threshold = None,
    quantile: flags.Quantile = None,
    count: flags.Count = None,
    modules: flags.Modules = None,
    on_undefined: flags.WhereUndefined = None,
    method: flags.Method = None,
    task_weight: flags.TaskWeight = None,
    safety_weight: flags.SafetyWeight = None,
    density: flags.Density = None,
    components: flags.Components = None,
    coefficients: flags.Coefficients = None,
    seed: flags.Seed = None,
    device: flags.Device = "cpu",
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
    as_json: flags.AsJson = False,
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
        "components": components,
        "coefficients": coefficients,
        "seed": seed,
    }
    merges = _merges(ctx, one, two)
    flags.without_coefficients(ctx, two)
    if private and push_to_hub is None:
        ctx.fail("--private: expected with --push-to-hub, got alone")

    from safemerge.cli.tables import warn
    from safemerge.engine.coefficient_files import read_coefficients
    from safemerge.engine.exporting import export_adapter, export_merge
    from safemerge.storage.hub_upload import HubTarget

    hub = None if push_to_hub is None else HubTarget(push_to_hub, private=private)
    given: dict[str, Any] = {name: value for name, value in (one | two).items() if value is not None}
    given |= {"output": output, "dtype": dtype.value, "hub": hub}
    if coefficients is not None:
        given["coefficients"] = read_coefficients(coefficients)
    with _progress() as (scored, written):
        if merges:
            given.setdefault("safety_adapter", None)
            report = export_merge(**given, device=device, scoring_progress=scored, progress=written)
        else:
            report = export_adapter(**given, progress=written)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print_summary(report, output, push_to_hub)
    warn(*report.warnings)


def _merges(ctx: typer.Context, one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether the flags are those of a merge; leaves with a usage error where they are of both or neither."""
    as_one, as_two = (
        [flags.flag(name) for name, value in given.items() if value is not None] for given in (one, two)
    )
    if as_one and as_two:
        ctx.fail(f"{', '.join(as_one)} and {', '.join(as_two)} do not go together: give one adapter or two")
    required = ("task_adapter", "aligned_model", "unaligned_model") if as_two else ("model", "adapter")
    if missing := [flags.flag(name) for name in required if (one | two)[name] is None]:
        ctx.fail(f"missing: {', '.join(missing)}")
    return bool(as_two)


ProgressCallback = Callable[[int, int, str], None]


@contextmanager
def _progress() -> Iterator[tuple[ProgressCallback, ProgressCallback]]:
    """Bars over layers scored and bytes written, with the time left; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[what]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.description}[/dim]"),
    )
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not sys.stderr.isatty()) as bars:

        def stage(what: str) -> ProgressCallback:
            task = bars.add_task("", total=None, what=what, visible=False)

            def advance(done: int, total: int, name: str) -> None:
                bars.update(task, completed=done, total=total, description=escape(name), visible=True)

            return advance

        yield stage("scoring layers"), stage("writing weights")


def _print_summary(report: ExportReport, output: Path, repository: str | None) -> None:
    from safemerge.cli.tables import console, facts, size

    rows = {
        "tensors changed": str(len(report.changed)),
        "dtype": "each its own" if report.dtype == "keep" else report.dtype,
        "weights": size(report.n_bytes),
    }
    if report.method is not None:
        rows["method"] = report.method
    if report.untied:
        rows["output embedding"] = "has weights of its own now: tie_word_embeddings is false in config.json"
    rows["written to"] = str(output)
    if repository is not None:
        rows["uploaded to"] = f"https://huggingface.co/{repository}"
    console().print(facts(rows, title="Full model"))
