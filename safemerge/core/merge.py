"""SafeMERGE on mappings: score the layers, choose those that left the safe subspace, merge them.

Layers are keyed by full module path and paired by key. Inputs are never changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from safemerge.core import combine
from safemerge.core.alignment import alignment_difference
from safemerge.core.lora import LoraPair
from safemerge.core.select import Selection, select_by_quantile, select_by_threshold
from safemerge.core.similarity import projected_cosine
from safemerge.errors import ConfigError, DegenerateLayerError, MismatchError, NonFiniteError

Method = Literal["exact", "peft_linear", "dare_linear", "scale", "scale_selected"]
OnUndefined = Literal["keep", "merge", "fail"]

WeightPair = tuple[Tensor, Tensor]
"""(aligned, unaligned) weight of one module, each (d_out, d_in)."""
Alignment = Mapping[str, WeightPair] | Callable[[str], WeightPair]
"""Gives the weights of a module; a callable lets them be read one module at a time."""
Progress = Callable[[int, int, str], None]
"""Called after each scored layer with layers done, layers in all, module path."""

DEFAULT_THRESHOLD = 0.35


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
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge a task adapter with a safety adapter where the task adapter left the safe subspace.

    A layer is merged where its projected cosine ρ lies below the threshold.

    Args:
        task: Module path to LoRA pair of the task adapter.
        safety: The same of the safety adapter.
        alignment: Module path to (aligned, unaligned) weight: a mapping, or a function called
            once for each layer of the task adapter, so that a model need not fit in memory.
        method: ``exact`` (α·ΔW_task + β·ΔW_safety in chosen layers), ``peft_linear`` or
            ``dare_linear`` (PEFT's sums of factors), ``scale`` (α·ΔW_task in all layers),
            ``scale_selected`` (α·ΔW_task in chosen layers).
        threshold: τ; 0.35 where no quantile is given either.
        quantile: Merge this share of the layers instead, those with the lowest cosines.
        task_weight: α. One weight given makes the other 1 minus it; none, 0.8 and 0.2.
        safety_weight: β.
        on_undefined: What to do with layers whose cosine is undefined: keep them as they
            are, merge them, or fail.
        density: ``dare_linear`` only: share of factor entries kept.
        generator: ``dare_linear`` only: source of its random draws.
        progress: Called after each scored layer.

    Raises:
        ConfigError: the options do not go together.
        MismatchError: a layer's shapes do not fit; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
        DegenerateLayerError: cosines are undefined and ``on_undefined`` is ``fail``.
    """
    check_options(method, threshold, quantile, on_undefined, density, generator)
    resolve_weights(task_weight, safety_weight)
    scores = score_layers(task, safety, alignment, progress=progress)
    return merge_scored(
        task,
        safety,
        scores,
        method=method,
        threshold=threshold,
        quantile=quantile,
        task_weight=task_weight,
        safety_weight=safety_weight,
        on_undefined=on_undefined,
        density=density,
        generator=generator,
    )


def score_layers(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    alignment: Alignment,
    *,
    progress: Progress | None = None,
) -> dict[str, LayerScore]:
    """Cosine and norms of every layer of the task adapter, in natural order of their paths.

    Raises:
        MismatchError: a layer's shapes do not fit; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
    """
    weights_of = alignment.__getitem__ if isinstance(alignment, Mapping) else alignment
    modules = sorted(task, key=natural_order)
    check_shapes(task, safety)
    scores = {}
    for done, module in enumerate(modules, start=1):
        scores[module] = _score_layer(module, task[module], safety.get(module), *weights_of(module))
        if progress is not None:
            progress(done, len(modules), module)
    return scores


def merge_scored(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    scores: Mapping[str, LayerScore],
    *,
    method: Method = "exact",
    threshold: float | None = None,
    quantile: float | None = None,
    task_weight: float | None = None,
    safety_weight: float | None = None,
    on_undefined: OnUndefined = "keep",
    density: float | None = None,
    generator: torch.Generator | None = None,
) -> MergeResult:
    """The second half of :func:`safemerge`: choose and merge layers that are already scored."""
    check_options(method, threshold, quantile, on_undefined, density, generator)
    weights = resolve_weights(task_weight, safety_weight)
    if method == "scale":
        selection = Selection(frozenset(task), math.nan)
    else:
        selection = _select(scores, threshold, quantile, on_undefined)
    merged = {}
    for module in sorted(task, key=natural_order):
        chosen = module in selection.chosen
        try:
            merged[module] = _merge_layer(
                task[module], safety.get(module), chosen, method, weights, density, generator
            )
        except MismatchError as error:
            raise MismatchError(f"{module}: {error}") from error
    unchanged = not selection.chosen
    rank = max((pair.rank for pair in merged.values()), default=0)
    return MergeResult(
        layers=dict(task) if unchanged else {m: combine.padded(pair, rank) for m, pair in merged.items()},
        decisions=tuple(
            _decide(module, scores[module], selection, method, on_undefined) for module in merged
        ),
        threshold=None if method == "scale" else selection.threshold,
        safety_only=tuple(sorted(set(safety) - set(task), key=natural_order)),
        unchanged=unchanged,
    )


def check_options(
    method: str,
    threshold: float | None,
    quantile: float | None,
    on_undefined: str,
    density: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        ConfigError: naming the option, what was expected and what it got.
    """
    if method not in get_args(Method):
        raise ConfigError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if on_undefined not in get_args(OnUndefined):
        raise ConfigError(
            f"on_undefined: expected one of {', '.join(get_args(OnUndefined))}, got {on_undefined!r}"
        )
    if threshold is not None and quantile is not None:
        raise ConfigError(f"expected threshold or quantile, got both ({threshold} and {quantile})")
    if threshold is not None:
        select_by_threshold({}, threshold)
    if quantile is not None:
        select_by_quantile({}, quantile)
    if (method == "dare_linear") != (density is not None and generator is not None):
        raise ConfigError(
            "expected density and a random generator with method dare_linear, and with no other"
        )


def resolve_weights(task_weight: float | None, safety_weight: float | None) -> tuple[float, float]:
    """[α, β]: one weight given makes the other 1 minus it; none, 0.8 and 0.2.

    Raises:
        ConfigError: a weight is not finite.
    """
    for name, weight in (("task_weight", task_weight), ("safety_weight", safety_weight)):
        if weight is not None and not math.isfinite(weight):
            raise ConfigError(f"{name}: expected a finite number, got {weight}")
    if task_weight is None:
        task_weight = 0.8 if safety_weight is None else 1 - safety_weight
    return task_weight, 1 - task_weight if safety_weight is None else safety_weight


def check_shapes(task: Mapping[str, LoraPair], safety: Mapping[str, LoraPair]) -> None:
    """Check that both adapters fit the same weight matrices, and meet at all.

    Raises:
        MismatchError: they have no layer in common, or layers differ in shape; all are named.
    """
    common = sorted(set(task) & set(safety), key=natural_order)
    if not common:
        raise MismatchError("expected adapters with layers in common, got none")
    wrong = [
        f"{module}: task {task[module].shape}, safety {safety[module].shape}"
        for module in common
        if task[module].shape != safety[module].shape
    ]
    if wrong:
        raise MismatchError(f"expected adapters of one base model, got different shapes: {'; '.join(wrong)}")


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
        where = " and ".join(name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all()))
        raise NonFiniteError(f"{module}: {error} in {where or 'a product of the weights'}") from error
    return LayerScore(cosine, None, task_norm, safety_norm)


def _select(
    scores: Mapping[str, LayerScore],
    threshold: float | None,
    quantile: float | None,
    on_undefined: OnUndefined,
) -> Selection:
    """Layers to merge, among those that both adapters have."""
    both = {module: score for module, score in scores.items() if score.safety_norm is not None}
    cosines = {module: score.cosine for module, score in both.items() if score.cosine is not None}
    undefined = {module: score.undefined for module, score in both.items() if score.cosine is None}
    if undefined and on_undefined == "fail":
        listed = "; ".join(
            f"{module}: {undefined[module]}" for module in sorted(undefined, key=natural_order)
        )
        raise DegenerateLayerError(f"cosine undefined in {len(undefined)} of {len(both)} layers: {listed}")
    if quantile is not None:
        selection = select_by_quantile(cosines, quantile)
    else:
        selection = select_by_threshold(cosines, DEFAULT_THRESHOLD if threshold is None else threshold)
    if on_undefined == "merge":
        return selection._replace(chosen=selection.chosen | undefined.keys())
    return selection


def _merge_layer(
    task: LoraPair,
    safety: LoraPair | None,
    chosen: bool,
    method: Method,
    weights: tuple[float, float],
    density: float | None,
    generator: torch.Generator | None,
) -> LoraPair:
    """The pair of one layer; what is not chosen keeps its update."""
    if method == "dare_linear" and safety is not None and density is not None and generator is not None:
        # The published script prunes the layers it keeps too: there it merges with weights 1 and 0.
        used = weights if chosen else (1.0, 0.0)
        return combine.dare_linear(task, safety, *used, density=density, generator=generator)
    if not chosen:
        return combine.peft_linear(task) if method == "peft_linear" else combine.scaled(task)
    if method in ("scale", "scale_selected") or safety is None:
        return combine.scaled(task, weights[0])
    if method == "peft_linear":
        return combine.peft_linear(task, safety, *weights)
    return combine.exact(task, safety, *weights)


def _decide(
    module: str, score: LayerScore, selection: Selection, method: Method, on_undefined: OnUndefined
) -> LayerDecision:
    """The decision in words."""
    merged = module in selection.chosen
    if method == "scale":
        reason = "every layer is scaled"
    elif score.safety_norm is None:
        reason = "kept: the safety adapter lacks the layer"
    elif score.cosine is None:
        reason = f"{'merged' if merged else 'kept'}: cosine undefined, {score.undefined}"
    else:
        reason = f"cosine {'below' if merged else 'not below'} the threshold {selection.threshold:.6g}"
    return LayerDecision(module, score.cosine, merged, reason, score.task_norm, score.safety_norm)
