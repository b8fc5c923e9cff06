"""The paper's formula: α·ΔW_task + β·ΔW_safety in chosen layers, ΔW_task elsewhere.

The factors are set side by side, so the sum is exact and its rank is r_task + r_safety.

Source: SafeMERGE, arXiv:2503.17239 (β = 1 − α there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod, scaled, side_by_side

if TYPE_CHECKING:
    import torch

    from safemerge.core.lora import LoraPair
    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """α·ΔW_task + β·ΔW_safety."""
    assert layer.safety is not None  # noqa: S101 - needs_safety
    alpha, beta = options.weights
    return side_by_side(scaled(layer.task, alpha), scaled(layer.safety, beta))


METHOD = MergeMethod(merge, weighed_sum=True)
