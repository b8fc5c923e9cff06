"""SafeLoRA: project the update onto the alignment's directions in chosen layers, no safety adapter.

ΔW becomes α·C·ΔW with C = V·Vᵀ/‖V‖ (Frobenius norm), α = 1 where no weight is given. Only B changes, to
V·(Vᵀ·B)/‖V‖, so the rank stays and C is never built. Where V is zero so is the projection, which is what
C·ΔW tends to as V does. SafeLoRA chooses layers with ρ ≤ τ, we with ρ < τ as SafeMERGE does: another
choice only where a cosine equals the threshold.

Source: Safe LoRA, arXiv:2405.16833.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Layer, MergeMethod, check_shapes, scaled

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions


def alignment_term(task: LoraPair, difference: Tensor, _options: MergeOptions) -> LoraPair:
    """C·ΔW_task.

    Raises:
        MismatchError: V is of another shape.
    """
    check_shapes(task, difference)
    norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
    if norm == 0:
        return LoraPair(task.lora_a, torch.zeros_like(task.lora_b), task.scale)
    # In rows, so that V is read in its own order; divided in between, so that nothing leaves fp32.
    rows = (task.lora_b.to(torch.float32).T @ difference) / norm
    return LoraPair(task.lora_a, (rows @ difference.T).T, task.scale)


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """α·C·ΔW_task."""
    assert layer.term is not None  # noqa: S101 - alignment_term
    return scaled(layer.term, options.weights[0])


METHOD = MergeMethod(merge, needs_safety=False, default_weights=(1.0, 0.0), alignment_term=alignment_term)
