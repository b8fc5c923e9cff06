"""LSSF: as lox, with as many of the alignment's directions as carry its information, layer by layer.

α·ΔW_task + γ·P·V with P = U_r·U_rᵀ in every layer, γ being ``safety_weight`` and both weights 1 where not
given. The rank r of a layer is the smallest that keeps a share η = 0.9 of the safety singular value
entropy: with p_i = σ_i² / Σσ² and H_r = −Σ_(i≤r) p_i·log p_i, the smallest r with H_r ≥ η·H_n.

Source: LSSF, ACL 2025, arXiv:2602.00038, as others describe it; its authors published no code. Ours: U
are the left singular vectors of V itself, not of activations on calibration prompts, so that no data is
needed, and P·V is V's best approximation at rank r; directions are weighted alike; r is at most
``components``; and the part of H_n beyond these directions, which are all that is computed, is taken
as the largest that the rest of ‖V‖² allows, so r is never smaller than that of the exact entropy, if
that is at most ``components``. Where V's singular values hardly fall off, ``components`` decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safemerge.core.directions import leading
from safemerge.core.methods.base import MergeMethod
from safemerge.core.methods.lox import merge

if TYPE_CHECKING:
    from safemerge.core.lora import LoraPair
    from safemerge.core.options import MergeOptions

RETAINED = 0.9
"""η, within the 0.8 to 0.9 that descriptions of the paper give."""


def alignment_term(_task: LoraPair, difference: Tensor, options: MergeOptions) -> LoraPair:
    """P·V.

    Raises:
        NonFiniteError: V holds NaN or infinity.
    """
    assert options.components is not None  # noqa: S101 - decomposes
    found = leading(difference, options.components)
    total = float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
    return found.pair(critical_rank(found.s[: options.components], total, min(difference.shape)))


def critical_rank(values: Tensor, total: float, size: int) -> int:
    """The smallest rank that keeps η of the entropy, at most as many as there are values.

    Args:
        values: Leading singular values in descending order.
        total: Sum of the squares of all.
        size: How many there are in all.
    """
    if total == 0:
        return 1
    shares = values.square() / total
    kept = torch.special.entr(shares).cumsum(0)
    rest, others = max(0.0, 1 - float(shares.sum())), size - len(values)
    beyond = (
        float(torch.special.entr(torch.tensor(rest / others, dtype=torch.float64))) * others
        if others
        else 0.0
    )
    enough = kept >= RETAINED * (float(kept[-1]) + beyond)
    return int(enough.to(torch.int8).argmax()) + 1 if bool(enough.any()) else len(values)


METHOD = MergeMethod(
    merge,
    chooses=False,
    needs_safety=False,
    default_weights=(1.0, 1.0),
    decomposes=True,
    alignment_term=alignment_term,
)
