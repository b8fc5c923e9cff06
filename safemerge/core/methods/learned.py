"""Learned: α·ΔW_task + β·ΔW_safety with weights of its own in every layer, fitted on training data.

The weights come from ``coefficients``: ``safemerge learn`` fits them to the task's own loss plus λ times the
loss of safe answers, everything else frozen. Layers whose weights are 1 and 0 are kept bit for bit; where
the safety adapter lacks a layer there is α alone. The factors are set side by side, so the sum is exact.

Source: ours. One coefficient a layer and update, learned by gradient, is layer-wise AdaMerging,
arXiv:2310.02575; there it lowers the entropy of unlabelled test data, here a loss on training data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod, scaled, side_by_side

if TYPE_CHECKING:
    import torch

    from safemerge.core.lora import LoraPair
    from safemerge.core.options import MergeOptions


def merge(layer: Layer, _options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """α·ΔW_task + β·ΔW_safety."""
    assert layer.weights is not None  # noqa: S101 - weighs_layers
    alpha, beta = layer.weights
    if layer.safety is None or beta == 0:
        return scaled(layer.task, alpha)
    return side_by_side(scaled(layer.task, alpha), scaled(layer.safety, beta))


METHOD = MergeMethod(merge, chooses=False, weighs_layers=True, weighed_sum=True)
