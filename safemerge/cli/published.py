"""The flags of the script published with the paper, so that its users move over unchanged.

Pure translation: the script's flags in, the keyword arguments of
:func:`safemerge.engine.merging.merge_adapters` out. What the script makes of them, and
so what is made here: PEFT's ``linear`` or ``dare_linear`` of the two adapters, which is
not the paper's formula.
"""

from __future__ import annotations

import ast
import math
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from safemerge.cli.flags import option
from safemerge.core.options import DEFAULT_THRESHOLD, OnUndefined

PANEL = "Flags of the published script (not with those above, but --density, --seed)"


def _flag(name: str, text: str) -> Any:
    return option(PANEL, text, f"--{name}")


BaseModelId = Annotated[str | None, _flag("base_model_id", "Accepted; a merge of files does not need it.")]
FinetunedModelId = Annotated[str | None, _flag("finetuned_model_id", "Task adapter.")]
SafetyModelId = Annotated[str | None, _flag("safety_model_id", "Safety adapter.")]
UnalignedModelId = Annotated[str | None, _flag("safelora_unaligned_model_id", "Unaligned model.")]
AlignedModelId = Annotated[str | None, _flag("safelora_aligned_model_id", "Aligned model.")]
CosThreshold = Annotated[float | None, _flag("cos_threshold", "Threshold.")]
DefaultMergeRatio = Annotated[
    float | None, _flag("default_merge_ratio", "r: weights 1 − r and r, whatever --weighting says.")
]
Weighting = Annotated[str | None, _flag("weighting", 'Weights, such as "[0.8, 0.2]".')]
MergeType = Annotated[str | None, _flag("merge_type", "linear or dare_linear.")]
OutputPath = Annotated[str | None, _flag("output_path", "Parent of the folder to write; may exist.")]

METHODS = {"linear": "peft_linear", "dare_linear": "peft_dare_linear"}
"""The script's ``--merge_type`` to our method."""


@dataclass(frozen=True)
class PublishedFlags:
    """The script's flags by their own names; None where not given."""

    base_model_id: str | None = None
    """Where the script loads the adapters; a merge of files does not need it."""
    finetuned_model_id: str | None = None
    safety_model_id: str | None = None
    safelora_unaligned_model_id: str | None = None
    safelora_aligned_model_id: str | None = None
    cos_threshold: float | None = None
    default_merge_ratio: float | None = None
    weighting: str | None = None
    merge_type: str | None = None
    density: float | None = None
    output_path: str | None = None
    seed: int | None = None
    """Ours: the script's own draws cannot be repeated."""


def with_draws(flags: PublishedFlags, density: float | None, seed: int | None) -> PublishedFlags:
    """The flags with those two that both families have."""
    return replace(flags, density=density, seed=seed)


def merge_arguments(flags: PublishedFlags, on_undefined: OnUndefined | None = None) -> dict[str, Any]:
    """What ``merge_adapters`` is to be called with.

    Args:
        flags: The script's flags.
        on_undefined: What to do with layers whose cosine is undefined, where the user says
            so; else it is what the script makes of a cosine of 0.

    Raises:
        typer.BadParameter: a flag is missing or its value cannot be used.
    """
    if missing := [
        f"--{name}"
        for name in (
            "finetuned_model_id",
            "safety_model_id",
            "safelora_unaligned_model_id",
            "safelora_aligned_model_id",
        )
        if getattr(flags, name) is None
    ]:
        raise typer.BadParameter(f"missing with the flags of the published script: {', '.join(missing)}")
    merge_type = flags.merge_type or "linear"
    if merge_type not in METHODS:
        raise typer.BadParameter(
            f"expected linear or dare_linear, got {merge_type!r}"
            + (" (the script writes an adapter of zeros for it)" if "ties" in merge_type else ""),
            param_hint="--merge_type",
        )
    task_weight, safety_weight = _weights(flags)
    threshold = DEFAULT_THRESHOLD if flags.cos_threshold is None else flags.cos_threshold
    arguments = {
        "task_adapter": flags.finetuned_model_id,
        "safety_adapter": flags.safety_model_id,
        "aligned_model": flags.safelora_aligned_model_id,
        "unaligned_model": flags.safelora_unaligned_model_id,
        "method": METHODS[merge_type],
        "threshold": threshold,
        "task_weight": task_weight,
        "safety_weight": safety_weight,
        "on_undefined": on_undefined or ("merge" if threshold > 0 else "keep"),
    }
    name = f"safemerge_{merge_type}_t{threshold:g}_w{task_weight:g}_{safety_weight:g}"
    if merge_type == "dare_linear":
        arguments |= {"density": _density(flags.density), "seed": flags.seed or 0}
        name += f"_density{flags.density:g}_seed{flags.seed or 0}"
    return arguments | {"output": _new_folder(Path(flags.output_path or "safemerge_models"), name)}


def formula_notice(arguments: dict[str, Any]) -> str:
    """Tells a user of the script what this is not, and the command that gives the paper's formula."""
    command = ["safemerge", "merge"]
    for flag in (
        "task_adapter",
        "safety_adapter",
        "aligned_model",
        "unaligned_model",
        "threshold",
        "task_weight",
        "safety_weight",
        "on_undefined",
    ):
        command += [f"--{flag.replace('_', '-')}", str(arguments[flag])]
    return (
        "note: merged as the published script does, by PEFT's addition of the factors. Its cross terms "
        "make this another adapter than the paper's formula α·ΔW_task + β·ΔW_safety. For the formula:\n"
        f"  {shlex.join(command)} --output DIR"
    )


def _weights(flags: PublishedFlags) -> tuple[float, float]:
    """[task, safety]; a ratio r means [1 − r, r] and overrides the weighting."""
    if flags.default_merge_ratio is not None:
        ratio = flags.default_merge_ratio
        # 1 − 0.2 is 0.8 to the last digit a user typed, not 0.8000000000000000444.
        return round(1 - ratio, 12), ratio
    text = "[0.8, 0.2]" if flags.weighting is None else flags.weighting
    try:
        task, safety = (float(weight) for weight in ast.literal_eval(text))
    except (ValueError, TypeError, SyntaxError):
        task = safety = math.nan
    if not (math.isfinite(task) and math.isfinite(safety)):
        raise typer.BadParameter(
            f"expected two numbers such as '[0.8, 0.2]', got {text!r}", param_hint="--weighting"
        )
    return task, safety


def _density(density: float | None) -> float:
    if density is None or not 0 < density <= 1:
        raise typer.BadParameter(
            f"--merge_type dare_linear expects a share in (0, 1], got {density}", param_hint="--density"
        )
    return density


def _new_folder(parent: Path, name: str) -> Path:
    """The named folder below the parent, numbered where earlier runs have taken the name."""
    name = re.sub(r"[^\w.+-]", "_", name)
    taken = {path.name for path in parent.iterdir()} if parent.is_dir() else set()
    candidates = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
    return parent / next(candidate for candidate in candidates if candidate not in taken)
