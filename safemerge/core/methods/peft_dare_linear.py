"""PEFT's ``dare_linear`` of the factors, as in the published script: random pruning, then ``peft_linear``.

Each entry of A and B is kept with probability ``density`` and divided by it, else set to zero. Equal to
PEFT in distribution; the draws differ. A kept layer is merged with weights 1 and 0 there, which prunes it
too.

Source: ``add_weighted_adapter(combination_type="dare_linear")`` of PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Layer, MergeMethod
from safemerge.core.methods.peft_linear import add_factors

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, generator: torch.Generator) -> LoraPair:
    """PEFT's sum of the pruned factors."""
    return _add_pruned(layer, options.weights, options, generator)


def keep(layer: Layer, options: MergeOptions, generator: torch.Generator) -> LoraPair:
    """ΔW_task of pruned factors; untouched where the safety adapter lacks the layer."""
    return _add_pruned(layer, (1.0, 0.0), options, generator)


def _add_pruned(
    layer: Layer, weights: tuple[float, float], options: MergeOptions, generator: torch.Generator
) -> LoraPair:
    if layer.safety is None:
        return add_factors(layer.task)
    assert options.density is not None  # noqa: S101 - prunes
    task, safety = (_pruned(pair, options.density, generator) for pair in (layer.task, layer.safety))
    return add_factors(task, safety, weights)


def _pruned(pair: LoraPair, density: float, generator: torch.Generator) -> LoraPair:
    factors = []
    for factor in (pair.lora_a, pair.lora_b):
        drawn = torch.bernoulli(torch.full(factor.shape, density), generator=generator)
        factors.append(factor.to(torch.float32) * drawn.to(factor.device) / density)
    return LoraPair(factors[0], factors[1], pair.scale)


METHOD = MergeMethod(merge, keep, prunes=True, changes_kept=True)
