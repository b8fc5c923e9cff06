"""``safemerge merge``: repair a fine-tuned LoRA adapter with a safety adapter.

Two families of flags lead to one merge: safemerge's own, which a config file may replace,
and those of the script published with the paper (:mod:`safemerge.cli.published`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.cli import flags, published
from safemerge.core import methods
from safemerge.core.options import SELECTIONS, SIZES, with_partners_cleared

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions
    from safemerge.records import MergeReport


EPILOG = (
    flags.methods_help()
    + "\n\n"
    + flags.epilog(
        "Half of the layers, those with the lowest cosines:",
        "safemerge merge --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
        "--aligned-model org/model-instruct --unaligned-model org/model --quantile 0.5 "
        "--output ./repaired",
        "A fixed threshold and other weights, with the report for a script:",
        "safemerge merge … --threshold 0.35 --task-weight 0.7 --output ./repaired --json | jq .layers",
        "Weights that safemerge learn found for every layer:",
        "safemerge merge … --coefficients ./learned/coefficients_3.json --output ./repaired",
        "From a config file (safemerge schema merge describes it), with a flag that overrides it:",
        "safemerge merge --config merge.yaml --rank 16",
        "As the published script:",
        "safemerge merge --base_model_id org/model-instruct --finetuned_model_id ./gsm8k-lora "
        "--safety_model_id ./safety-lora --safelora_unaligned_model_id org/model "
        "--safelora_aligned_model_id org/model-instruct --cos_threshold 0.35 --output_path ./merged",
    )
)


def register(app: typer.Typer) -> None:
    """Add ``merge`` to the command line."""
    app.command(name="merge", epilog=EPILOG)(merge)


def merge(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with inputs, settings and output; flags override it.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Folder to write; must not exist.", show_default=False)
    ] = None,
    device: flags.Device = "cpu",
    hash_files: flags.HashFiles = False,
    as_json: flags.AsJson = False,
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
    rank: flags.Rank = None,
    max_error: flags.MaxError = None,
    base_model_id: published.BaseModelId = None,
    finetuned_model_id: published.FinetunedModelId = None,
    safety_model_id: published.SafetyModelId = None,
    safelora_unaligned_model_id: published.UnalignedModelId = None,
    safelora_aligned_model_id: published.AlignedModelId = None,
    cos_threshold: published.CosThreshold = None,
    default_merge_ratio: published.DefaultMergeRatio = None,
    weighting: published.Weighting = None,
    merge_type: published.MergeType = None,
    output_path: published.OutputPath = None,
) -> None:
    """Merge a task adapter with a safety adapter where fine-tuning left the safe subspace.

    Reads the checkpoints tensor by tensor and loads no model. Writes an adapter that
    PEFT loads, safemerge_report.json and a plot of every layer, safemerge_layers.html.
    """
    script = published.PublishedFlags(
        base_model_id=base_model_id,
        finetuned_model_id=finetuned_model_id,
        safety_model_id=safety_model_id,
        safelora_unaligned_model_id=safelora_unaligned_model_id,
        safelora_aligned_model_id=safelora_aligned_model_id,
        cos_threshold=cos_threshold,
        default_merge_ratio=default_merge_ratio,
        weighting=weighting,
        merge_type=merge_type,
        output_path=output_path,
    )
    own = {
        "config": config,
        "task_adapter": task_adapter,
        "safety_adapter": safety_adapter,
        "aligned_model": aligned_model,
        "unaligned_model": unaligned_model,
        "output": output,
        "threshold": threshold,
        "quantile": quantile,
        "count": count,
        "modules": modules or None,
        "method": method,
        "task_weight": task_weight,
        "safety_weight": safety_weight,
        "components": components,
        "coefficients": None if coefficients is None else str(coefficients),
        "rank": rank,
        "max_error": max_error,
    }
    shared = {"density": density, "seed": seed, "on_undefined": on_undefined}
    if as_published := _is_published(ctx, script, own):
        script = published.with_draws(script, density, seed)
        arguments = published.merge_arguments(script, on_undefined)
    elif config is not None:
        arguments = _file_arguments(ctx, config, own | shared)
    else:
        arguments = _own_arguments(ctx, own | shared)
    report = _merge(arguments, hash_files, device)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print_summary(report, arguments["output"])
    if as_published:
        typer.echo(published.formula_notice(arguments), err=as_json)
    _warn_of_result(report)


def _is_published(ctx: typer.Context, script: published.PublishedFlags, own: dict[str, Any]) -> bool:
    """Whether the flags are the script's; leaves with a usage error where both families are there."""
    as_published = [f"--{name}" for name, value in vars(script).items() if value is not None]
    as_own = [flags.flag(name) for name, value in own.items() if value is not None]
    if as_published and as_own:
        ctx.fail(
            f"{', '.join(as_own)} and {', '.join(as_published)} belong to two families of flags, safemerge's "
            "own and the published script's: use one"
        )
    return bool(as_published)


def _own_arguments(ctx: typer.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Our flags as keyword arguments of ``merge_adapters``; leaves with a usage error."""
    flags.without_coefficients(ctx, given)
    required = [*flags.INPUT_NAMES, "output"]
    if given["method"] and not methods.get(given["method"]).needs_safety:
        required.remove("safety_adapter")
    if missing := [flags.flag(name) for name in required if given[name] is None]:
        ctx.fail(f"missing: {', '.join(missing)}")
    for names in (SELECTIONS, SIZES):
        flags.unique(ctx, given, names)
    arguments = {name: value for name, value in given.items() if value is not None}
    return {"safety_adapter": None} | arguments | {"output": Path(given["output"])}


def _file_arguments(ctx: typer.Context, config: Path, given: dict[str, Any]) -> dict[str, Any]:
    """A config file and the flags that override it, as keyword arguments of ``merge_adapters``."""
    from safemerge.config.load import load_merge_file

    flags.without_coefficients(ctx, given)
    for names in (SELECTIONS, SIZES):
        flags.unique(ctx, given, names)
    chosen = {name: value for name, value in given.items() if value is not None and name != "config"}
    # A choice on the command line stands for all that the file says of it.
    overrides = {
        name if name in (*flags.INPUT_NAMES, "output") else f"merge.{name}": value
        for name, value in with_partners_cleared(chosen).items()
    }
    settings = load_merge_file(config, overrides)
    return (
        flags.inputs_of(settings) | settings.merge.model_dump(mode="json") | {"output": Path(settings.output)}
    )


def _merge(arguments: dict[str, Any], hash_files: bool, device: str) -> MergeReport:
    from safemerge.cli.advice import option_warnings
    from safemerge.cli.tables import progress_bar, warn
    from safemerge.engine.coefficient_files import read_coefficients
    from safemerge.engine.merging import merge_adapters

    if arguments.get("coefficients") is not None:
        arguments["coefficients"] = read_coefficients(arguments["coefficients"])
    warn(*option_warnings(_options(arguments)))
    with progress_bar() as progress:
        report = merge_adapters(**arguments, hash_files=hash_files, device=device, progress=progress)
    warn(*report.warnings)
    return report


def _options(arguments: dict[str, Any]) -> MergeOptions:
    from safemerge.core.options import MergeOptions

    settings = {
        name: value for name, value in arguments.items() if name not in (*flags.INPUT_NAMES, "output")
    }
    return MergeOptions(**settings)


def _warn_of_result(report: MergeReport) -> None:
    from safemerge.cli.advice import error_warning, rank_warning, threshold_warning
    from safemerge.cli.tables import warn

    warn(threshold_warning(report), rank_warning(report), error_warning(report))


def _print_summary(report: MergeReport, output: Path) -> None:
    from safemerge.cli.tables import console, facts, spread

    merged = sum(layer.merged for layer in report.layers)
    cosines = [layer.cosine for layer in report.layers if layer.cosine is not None]
    task, safety = report.weights
    threshold = "none" if report.threshold is None else f"{report.threshold:.4g}"
    if report.quantile is not None:
        threshold += f" (quantile {report.quantile:g})"
    weights = f"weight {task:g}"
    if report.options.get("coefficients") is not None:
        weights = f"weights of each layer, on average {task:.3g} (task) and {safety:.3g} (safety)"
    elif methods.get(report.method).weighs_safety:
        weights = f"weights {task:g} (task) and {safety:g} (safety)"
    rows = {
        "layers merged": f"{merged} of {len(report.layers)}",
        "threshold": threshold,
        "cosines": spread(cosines),
        "method": f"{report.method}, {weights}",
    }
    if undefined := len(report.layers) - len(cosines):
        rows["cosine undefined"] = f"{undefined} layers (see their reason in the report)"
    if report.safety_only_layers:
        rows["left out"] = f"{len(report.safety_only_layers)} layers that only the safety adapter has"
    rows["rank"] = str(report.rank)
    if errors := {layer.module: layer.error for layer in report.layers if layer.error is not None}:
        worst = max(errors, key=lambda module: errors[module])
        rows["error"] = f"at most {errors[worst]:.3g} of an update ({worst})"
    rows["written to"] = str(output)
    console().print(facts(rows, title="Merged adapter"))
