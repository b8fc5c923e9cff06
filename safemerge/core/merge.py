"""SafeMERGE on mappings: score the layers, choose those that left the safe subspace, merge them.

Layers are keyed by full module path and paired by key. Inputs are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.core import combine
from safemerge.core.alignment import alignment_difference
from safemerge.core.lora import LoraPair
from safemerge.core.options import DEFAULT_THRESHOLD, MergeOptions, Method, OnUndefined
from safemerge.core.select import Selection, select_by_quantile, select_by_threshold
from safemerge.core.similarity import projected_cosine
from safemerge.errors import DegenerateLayerError, MismatchError, NonFiniteError

WeightPair = tuple[Tensor, Tensor]
"""(aligned, unaligned) weight of one module, each (d_out, d_in)."""
Alignment = Mapping[str, WeightPair] | Callable[[str], WeightPair]
"""Gives the weights of a module; a callable lets them be read one module at a time."""
Progress = Callable[[int, int, str], None]
"""Called after each scored layer with layers done, layers in all, module path."""


class LayerScore(NamedTuple):
    """What is known of a layer before anything is chosen."""

    cosine: float | None
    """ρ in [0, 1]; None where it is undefined."""
    undefined: str | None
    """Why the cosine is undefined; None where it is not."""
    task_norm: float
    """Frobenius norm of ΔW_task."""
    safety_norm: float | None
    """Frobenius norm of ΔW_safety; None where the safety adapter lacks the layer."""


class LayerDecision(NamedTuple):
    """What was done with a layer, and why."""

    module: str
    cosine: float | None
    merged: bool
    """Whether the layer was chosen to be merged (or scaled)."""
    reason: str
    task_norm: float
    safety_norm: float | None


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter, and how it came about."""

    layers: dict[str, LoraPair]
    """Module path to merged pair: fp32, all of one rank, scale 1; the task's pairs where ``unchanged``."""
    decisions: tuple[LayerDecision, ...]
    """One for each layer of the task adapter, in natural order of their paths."""
    threshold: float | None
    """τ as used; None where the method chooses no layers by cosine."""
    safety_only: tuple[str, ...]
    """Layers that only the safety adapter has: left out."""
    unchanged: bool
    """True where no layer was chosen, so that the result is the task adapter itself."""


def safemerge(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    alignment: Alignment,
    *,
    method: Method = "exact",
    threshold: float | None = None,
    quantile: float | None = None,
    task_weight: float | None = None,
    safety_weight: float | None = None,
    on_undefined: OnUndefined = "keep",
    density: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge a task adapter with a safety adapter where the task adapter left the safe subspace.

    A layer is merged where its projected cosine ρ lies below the threshold. Layers that
    only the task adapter has are kept as they are.

    Args:
        task: Module path to LoRA pair of the task adapter.
        safety: The same of the safety adapter.
        alignment: Module path to (aligned, unaligned) weight: a mapping, or a function called
            once for each layer of the task adapter, so that a model need not fit in memory.
        method: The options down to ``seed`` are those of
            :class:`safemerge.core.options.MergeOptions`.
        threshold: τ; 0.35 where no quantile is given either.
        quantile: Merge this share of the layers instead, those with the lowest cosines.
        task_weight: α. One weight given makes the other 1 minus it; none, 0.8 and 0.2.
        safety_weight: β.
        on_undefined: What to do with layers whose cosine is undefined: keep them as they
            are, merge them, or fail.
        density: ``dare_linear`` only: share of factor entries kept.
        seed: ``dare_linear`` only: seed of its random draws.
        progress: Called after each scored layer.

    Raises:
        ConfigError: the options do not go together.
        MismatchError: a layer's shapes do not fit; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
        DegenerateLayerError: cosines are undefined and ``on_undefined`` is ``fail``.
    """
    options = MergeOptions(
        method=method,
        threshold=threshold,
        quantile=quantile,
        task_weight=task_weight,
        safety_weight=safety_weight,
        on_undefined=on_undefined,
        density=density,
        seed=seed,
    )
    scores = score_layers(task, safety, alignment, progress=progress)
    return merge_scored(task, safety, scores, options)


def score_layers(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    alignment: Alignment,
    *,
    progress: Progress | None = None,
) -> dict[str, LayerScore]:
    """Cosine and norms of every layer of the task adapter, in natural order of their paths.

    Raises:
        MismatchError: a layer's shapes do not fit, or ``alignment`` lacks it; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
    """
    check_shapes(task, safety)
    modules = sorted(task, key=natural_order)
    if isinstance(alignment, Mapping):
        if missing := [module for module in modules if module not in alignment]:
            raise MismatchError(f"expected weights of every layer, got none for {', '.join(missing)}")
        alignment = alignment.__getitem__
    scores = {}
    for done, module in enumerate(modules, start=1):
        scores[module] = _score_layer(module, task[module], safety.get(module), *alignment(module))
        if progress is not None:
            progress(done, len(modules), module)
    return scores


def merge_scored(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    scores: Mapping[str, LayerScore],
    options: MergeOptions,
) -> MergeResult:
    """The second half of :func:`safemerge`: choose and merge layers that are already scored.

    Raises:
        MismatchError: the method cannot merge a layer's two pairs; it is named.
        DegenerateLayerError: cosines are undefined and ``options.on_undefined`` is ``fail``.
    """
    modules = sorted(task, key=natural_order)
    selection = None if options.method == "scale" else _select(scores, options)
    chosen = frozenset(task) if selection is None else selection.chosen
    unchanged = not chosen and options.method != "dare_linear"  # which prunes kept layers too
    return MergeResult(
        layers=dict(task) if unchanged else _merge_layers(task, safety, chosen, options),
        decisions=tuple(_decide(module, scores[module], selection) for module in modules),
        threshold=None if selection is None else selection.threshold,
        safety_only=tuple(sorted(set(safety) - set(task), key=natural_order)),
        unchanged=unchanged,
    )


def check_shapes(task: Mapping[str, LoraPair], safety: Mapping[str, LoraPair]) -> None:
    """Check that both adapters fit the same weight matrices, and meet at all.

    Raises:
        MismatchError: they have no layer in common, or layers differ in shape; all are named.
    """
    common = sorted(set(task) & set(safety), key=natural_order)
    if not common:
        raise MismatchError("expected a task and a safety adapter with layers in common, got none")
    wrong = [
        f"{module} (task {task[module].shape}, safety {safety[module].shape})"
        for module in common
        if task[module].shape != safety[module].shape
    ]
    if wrong:
        raise MismatchError(f"expected adapters of one base model, got different shapes: {', '.join(wrong)}")


def natural_order(module: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", module)]


def _score_layer(
    module: str, task: LoraPair, safety: LoraPair | None, aligned: Tensor, unaligned: Tensor
) -> LayerScore:
    task_norm = task.norm()
    safety_norm = None if safety is None else safety.norm()
    try:
        cosine = projected_cosine(task.lora_a, task.lora_b, alignment_difference(aligned, unaligned))
    except DegenerateLayerError as error:
        return LayerScore(None, str(error), task_norm, safety_norm)
    except MismatchError as error:
        raise MismatchError(f"{module}: {error}") from error
    except NonFiniteError as error:
        named = {
            "the task adapter's lora_A": task.lora_a,
            "the task adapter's lora_B": task.lora_b,
            "the aligned model's weight": aligned,
            "the unaligned model's weight": unaligned,
        }
        where = [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]
        raise NonFiniteError(f"{module}: {error} in {' and '.join(where) or 'products of them'}") from error
    return LayerScore(cosine, None, task_norm, safety_norm)


def _select(scores: Mapping[str, LayerScore], options: MergeOptions) -> Selection:
    """Layers to merge, among those that both adapters have."""
    both = {module: score for module, score in scores.items() if score.safety_norm is not None}
    cosines = {module: score.cosine for module, score in both.items() if score.cosine is not None}
    undefined = [module for module in both if module not in cosines]
    if undefined and options.on_undefined == "fail":
        listed = "; ".join(f"{module}: {both[module].undefined}" for module in undefined)
        raise DegenerateLayerError(f"cosine undefined in {len(undefined)} of {len(both)} layers: {listed}")
    if options.quantile is not None:
        selection = select_by_quantile(cosines, options.quantile)
    else:
        threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
        selection = select_by_threshold(cosines, threshold)
    if options.on_undefined == "merge":
        return selection._replace(chosen=selection.chosen.union(undefined))
    return selection


def _merge_layers(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    chosen: frozenset[str],
    options: MergeOptions,
) -> dict[str, LoraPair]:
    """Pairs of all layers, merged or kept, zero-padded to one rank."""
    generator = torch.Generator().manual_seed(options.seed)
    merged = {}
    for module in sorted(task, key=natural_order):
        try:
            merged[module] = _merge_layer(
                task[module], safety.get(module), module in chosen, options, generator
            )
        except MismatchError as error:
            raise MismatchError(f"{module}: {error}") from error
    rank = max(pair.rank for pair in merged.values())
    return {module: combine.padded(pair, rank) for module, pair in merged.items()}


def _merge_layer(
    task: LoraPair,
    safety: LoraPair | None,
    chosen: bool,
    options: MergeOptions,
    generator: torch.Generator,
) -> LoraPair:
    weights = options.weights
    if options.density is not None and safety is not None:
        # The published script keeps a layer by merging it with weights 1 and 0, which prunes it too.
        used = weights if chosen else (1.0, 0.0)
        return combine.dare_linear(task, safety, *used, density=options.density, generator=generator)
    if not chosen:
        spread = options.method in ("peft_linear", "dare_linear")
        return combine.peft_linear(task) if spread else combine.scaled(task)
    if safety is None or options.method in ("scale", "scale_selected"):
        return combine.scaled(task, weights[0])
    if options.method == "peft_linear":
        return combine.peft_linear(task, safety, *weights)
    return combine.exact(task, safety, *weights)


def _decide(module: str, score: LayerScore, selection: Selection | None) -> LayerDecision:
    """The decision in words."""
    merged = selection is None or module in selection.chosen
    if selection is None:
        reason = "every layer is scaled"
    elif score.safety_norm is None:
        reason = "kept: the safety adapter lacks the layer"
    elif score.cosine is None:
        reason = f"{'merged' if merged else 'kept'}: cosine undefined, {score.undefined}"
    elif merged:
        reason = f"merged: cosine below {selection.threshold:.6g}"
    else:
        reason = f"kept: cosine not below {selection.threshold:.6g}"
    return LayerDecision(module, score.cosine, merged, reason, score.task_norm, score.safety_norm)
