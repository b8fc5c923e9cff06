"""LoX: add the alignment's strongest directions to the update in every layer, no safety adapter.

α·ΔW_task + γ·V_k, where V_k is the best approximation of V at rank k: its k leading singular directions.
k is ``components``, γ is ``safety_weight``, and both weights are 1 where not given. The paper
strengthens the aligned model before it is fine-tuned; here the same term is added afterwards.

Source: LoX, arXiv:2506.15606. Ours: V_k comes from subspace iteration
(:func:`safemerge.core.directions.leading`), not from the whole decomposition of V.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.directions import leading
from safemerge.core.methods.base import Layer, MergeMethod, scaled, side_by_side

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safemerge.core.lora import LoraPair
    from safemerge.core.options import MergeOptions


def alignment_term(_task: LoraPair, difference: Tensor, options: MergeOptions) -> LoraPair:
    """V_k.

    Raises:
        NonFiniteError: V holds NaN or infinity.
    """
    assert options.components is not None  # noqa: S101 - decomposes
    return leading(difference, options.components).pair(options.components)


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """α·ΔW_task + γ·V_k."""
    assert layer.term is not None  # noqa: S101 - alignment_term
    alpha, gamma = options.weights
    return side_by_side(scaled(layer.task, alpha), scaled(layer.term, gamma))


METHOD = MergeMethod(
    merge,
    chooses=False,
    needs_safety=False,
    default_weights=(1.0, 1.0),
    decomposes=True,
    alignment_term=alignment_term,
)
