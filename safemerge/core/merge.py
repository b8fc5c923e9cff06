"""SafeMERGE on mappings: score the layers, choose those that left the safe subspace, merge them.

Layers are keyed by full module path and paired by key. Inputs are never changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import torch
from torch import Tensor

from safemerge.core import methods
from safemerge.core.compress import compressed, padded
from safemerge.core.layer_weights import UNCHANGED
from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import AlignmentTerm, Layer, MergeMethod, Update
from safemerge.core.module_names import natural_order
from safemerge.core.options import DEFAULT_THRESHOLD, MergeOptions, MergeSettings
from safemerge.core.scoring import Alignment, LayerScore, Progress, Terms, score_layers
from safemerge.core.select import (
    Selection,
    select_by_count,
    select_by_modules,
    select_by_quantile,
    select_by_threshold,
)
from safemerge.errors import ConfigError, DegenerateLayerError, MismatchError, NonFiniteError


class LayerDecision(NamedTuple):
    """What was done with a layer, and why."""

    module: str
    cosine: float | None
    merged: bool
    """Whether the layer was chosen to be merged (or scaled)."""
    reason: str
    task_norm: float
    safety_norm: float | None
    error: float | None = None
    """Relative error (Frobenius norm) of the stored update; None where it was stored as it came out."""
    weights: tuple[float, float] | None = None
    """(α, β) of this layer, where each has its own."""


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter, and how it came about."""

    layers: dict[str, LoraPair]
    """Module path to merged pair: fp32, all of one rank, scale 1; the task's pairs where ``unchanged``."""
    decisions: tuple[LayerDecision, ...]
    """One for each layer of the task adapter, in natural order of their paths."""
    threshold: float | None
    """τ as used; None where no layers were chosen by cosine."""
    safety_only: tuple[str, ...]
    """Layers that only the safety adapter has: left out."""
    unchanged: bool
    """True where no layer was changed, so that the result is the task adapter itself."""


def safemerge(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair] | None,
    alignment: Alignment,
    *,
    progress: Progress | None = None,
    **settings: Unpack[MergeSettings],
) -> MergeResult:
    """Merge a task adapter with a safety adapter where the task adapter left the safe subspace.

    A layer is merged where its projected cosine ρ lies below the threshold. Layers that
    only the task adapter has are kept as they are.

    Args:
        task: Module path to LoRA pair of the task adapter.
        safety: The same of the safety adapter; None where the method needs none.
        alignment: Module path to (aligned, unaligned) weight: a mapping, or a function called
            once for each layer of the task adapter, so that a model need not fit in memory.
        progress: Called after each scored layer.
        **settings: Which layers are merged, and how: fields of
            :class:`safemerge.core.options.MergeOptions`.

    Raises:
        ConfigError: the options do not go together.
        MismatchError: a layer's shapes do not fit; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
        DegenerateLayerError: cosines are undefined and ``on_undefined`` is ``fail``.
    """
    options = MergeOptions(**settings)
    check_layers_fit(task, safety)
    scores = score_layers(task, alignment, terms=alignment_terms([options]), progress=progress)
    return merge_scored(task, safety, scores, options)


def alignment_terms(options: Sequence[MergeOptions]) -> Terms:
    """What the scoring pass must make of V, so that all these merges can be made from its scores."""
    found = ((chosen, methods.get(chosen.method).alignment_term) for chosen in options)
    return {_term_name(chosen): _bound(term, chosen) for chosen, term in found if term is not None}


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A merge whose layers are chosen, and whose updates are made one by one, in any order."""

    task: Mapping[str, LoraPair]
    safety: Mapping[str, LoraPair]
    scores: Mapping[str, LayerScore]
    options: MergeOptions
    method: MergeMethod
    selection: Selection

    @property
    def unchanged(self) -> bool:
        """Whether every update is ΔW_task."""
        return not (self.selection.chosen or self.method.changes_kept)

    def weights(self, module: str) -> tuple[float, float] | None:
        """(α, β) of a layer, where each has its own."""
        coefficients = self.options.coefficients
        return None if coefficients is None else coefficients.layers[module]

    def update(self, module: str) -> Update:
        """The merged update of a layer; random draws depend on the seed and the module's path alone.

        Raises:
            MismatchError: the method cannot merge the layer's two pairs; it is named.
            NonFiniteError: the update holds NaN or infinity, as a safety adapter may; the layer is named.
        """
        score = self.scores[module]
        layer = Layer(
            self.task[module],
            self.safety.get(module),
            score.terms.get(_term_name(self.options)),
            self.weights(module),
        )
        make = self.method.merge if module in self.selection.chosen else self.method.keep
        try:
            update = make(layer, self.options, _generator(self.options.seed, module))
        except MismatchError as error:
            raise MismatchError(f"{module}: {error}") from error
        parts = (update.lora_a, update.lora_b) if isinstance(update, LoraPair) else (update,)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise NonFiniteError(f"{module}: expected a finite merged update, got NaN or infinity")
        return update

    def decision(self, module: str, error: float | None = None) -> LayerDecision:
        """What is done with a layer, in words; ``error`` is that of storing its update."""
        score, merged = self.scores[module], module in self.selection.chosen
        safety = self.safety.get(module)
        return LayerDecision(
            module,
            score.cosine,
            merged,
            self._reason(module, score, merged),
            score.task_norm,
            None if safety is None else safety.norm(),
            error,
            self.weights(module),
        )

    def _reason(self, module: str, score: LayerScore, merged: bool) -> str:
        verb, threshold = "merged" if merged else "kept", self.selection.threshold
        if (weights := self.weights(module)) is not None:
            return f"{verb}: coefficients {weights[0]:.4g} and {weights[1]:.4g}"
        if self.method.needs_safety and module not in self.safety:
            return "kept: the safety adapter lacks the layer"
        if not self.method.chooses:
            return f"merged: {self.options.method} changes every layer"
        if threshold is None:
            return f"{verb}: {'' if merged else 'not '}on the list"
        if score.cosine is None:
            return f"{verb}: cosine undefined, {score.undefined}"
        return f"{verb}: cosine {'' if merged else 'not '}below {threshold:.6g}"


def plan_merge(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair] | None,
    scores: Mapping[str, LayerScore],
    options: MergeOptions,
) -> MergePlan:
    """Choose the layers to merge.

    Raises:
        ConfigError: the method needs a safety adapter and there is none, or the layers asked for are not
            there.
        MismatchError: coefficients are of other layers than the task adapter has.
        DegenerateLayerError: cosines are undefined and ``options.on_undefined`` is ``fail``.
    """
    method = methods.get(options.method)
    if method.needs_safety and safety is None:
        raise ConfigError(f"method {options.method}: expected a safety adapter, got none")
    safety = safety or {}
    return MergePlan(task, safety, scores, options, method, _selection(method, safety, scores, options))


def merge_scored(
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair] | None,
    scores: Mapping[str, LayerScore],
    options: MergeOptions,
) -> MergeResult:
    """The second half of :func:`safemerge`: choose and merge layers that are already scored.

    Raises:
        ConfigError: the method needs a safety adapter and there is none, or the layers asked for are not
            there.
        MismatchError: the method cannot merge a layer's two pairs; it is named.
        NonFiniteError: a merged update holds NaN or infinity; its layer is named.
        DegenerateLayerError: cosines are undefined and ``options.on_undefined`` is ``fail``.
    """
    plan = plan_merge(task, safety, scores, options)
    modules = sorted(task, key=natural_order)
    unchanged = plan.unchanged and options.rank is None and options.max_error is None
    layers: dict[str, LoraPair] = dict(task)
    errors: dict[str, float | None] = {}
    if not unchanged:
        for module in modules:
            layers[module], errors[module] = stored(plan, module)
        rank = options.rank or max(pair.rank for pair in layers.values())
        layers = {module: padded(pair, rank) for module, pair in layers.items()}
    return MergeResult(
        layers=layers,
        decisions=tuple(plan.decision(module, errors.get(module)) for module in modules),
        threshold=plan.selection.threshold,
        safety_only=tuple(sorted(set(safety or {}) - set(task), key=natural_order)),
        unchanged=unchanged,
    )


def check_layers_fit(task: Mapping[str, LoraPair], safety: Mapping[str, LoraPair] | None) -> None:
    """Check that both adapters fit the same weight matrices, and meet at all.

    Raises:
        MismatchError: they have no layer in common, or layers differ in shape; all are named.
    """
    if safety is None:
        return
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


def _term_name(options: MergeOptions) -> str:
    """Tells apart the terms of merges that are made from one scoring: all that a term depends on."""
    return options.method if options.components is None else f"{options.method} of {options.components}"


def _bound(term: AlignmentTerm, options: MergeOptions) -> Callable[[LoraPair, Tensor], LoraPair]:
    return lambda task, difference: term(task, difference, options)


def _generator(seed: int, module: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def stored(plan: MergePlan, module: str) -> tuple[LoraPair, float | None]:
    """A layer's update at the rank that was asked for, and its relative error where it was compressed."""
    update, options = plan.update(module), plan.options
    rank = options.rank
    if rank is None and options.max_error is None:
        if isinstance(update, LoraPair):
            return update, None
        safety = plan.safety.get(module)
        rank = plan.task[module].rank + (0 if safety is None else safety.rank)
    return compressed(update, rank=rank, max_error=options.max_error)


def _selection(
    method: MergeMethod,
    safety: Mapping[str, LoraPair],
    scores: Mapping[str, LayerScore],
    options: MergeOptions,
) -> Selection:
    """Layers whose update is another than ΔW_task."""
    if options.coefficients is not None:
        options.coefficients.check(scores.keys(), safety.keys())
        changed = (module for module, pair in options.coefficients.layers.items() if pair != UNCHANGED)
        return Selection(frozenset(changed), None)
    eligible = {m: score for m, score in scores.items() if m in safety or not method.needs_safety}
    return _select(eligible, options) if method.chooses else Selection(frozenset(eligible), None)


def _select(scores: Mapping[str, LayerScore], options: MergeOptions) -> Selection:
    """Layers to merge, among those that may be."""
    if options.modules is not None:
        return select_by_modules(scores.keys(), options.modules)
    cosines = {module: score.cosine for module, score in scores.items() if score.cosine is not None}
    undefined = [module for module in scores if module not in cosines]
    if undefined and options.on_undefined == "fail":
        listed = "; ".join(f"{module}: {scores[module].undefined}" for module in undefined)
        raise DegenerateLayerError(f"cosine undefined in {len(undefined)} of {len(scores)} layers: {listed}")
    if options.quantile is not None:
        selection = select_by_quantile(cosines, options.quantile)
    elif options.count is not None:
        selection = select_by_count(cosines, options.count)
    else:
        threshold = DEFAULT_THRESHOLD if options.threshold is None else options.threshold
        selection = select_by_threshold(cosines, threshold)
    if options.on_undefined == "merge":
        return selection._replace(chosen=selection.chosen.union(undefined))
    return selection
