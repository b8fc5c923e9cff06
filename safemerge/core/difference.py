"""Two LoRA updates beside each other: inner product and difference, from their factors alone, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import check_shapes


def inner_product(first: LoraPair, second: LoraPair) -> float:
    """⟨ΔW₁, ΔW₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), entry by entry; no (d_out, d_in) matrix is built.

    Rounding is about 10⁻¹⁶ of ‖ΔW₁‖·‖ΔW₂‖.

    Raises:
        MismatchError: the updates differ in shape.
    """
    check_shapes(first, second)
    left = first.lora_b.to(torch.float64).T @ second.lora_b.to(torch.float64)
    right = first.lora_a.to(torch.float64) @ second.lora_a.to(torch.float64).T
    return first.scale * second.scale * float((left * right).sum())


def difference_norm(first: LoraPair, second: LoraPair) -> float:
    """‖ΔW₁ − ΔW₂‖, Frobenius.

    By QR of the factors side by side: unlike ‖ΔW₁‖² − 2⟨ΔW₁, ΔW₂⟩ + ‖ΔW₂‖², it keeps its figures where
    the updates are nearly equal.

    Raises:
        MismatchError: the updates differ in shape.
    """
    check_shapes(first, second)
    a = torch.cat([first.lora_a.to(torch.float64), second.lora_a.to(torch.float64)])
    b = torch.cat(
        [first.lora_b.to(torch.float64) * first.scale, second.lora_b.to(torch.float64) * -second.scale], dim=1
    )
    return LoraPair(a, b).norm()


def in_coordinates(updates: Sequence[LoraPair]) -> list[LoraPair]:
    """The same updates in orthonormal bases of what they span together: small, and as long and as far apart.

    With Q an orthonormal basis of all columns of the B's, and P of all rows of the A's, ΔW = Q·ΔW'·Pᵀ.
    Whatever is made of the ΔW' by sums, products with numbers and singular directions is Qᵀ·(the same made
    of the ΔW)·P; what looks at single entries is not.

    Args:
        updates: Updates of one weight matrix.

    Returns:
        The pairs of ΔW', float64, with ranks and scales as they were; their shape is at most the sum of
        the ranks.

    Raises:
        MismatchError: the updates differ in shape.
    """
    check_shapes(*updates)
    ranks = [pair.rank for pair in updates]
    rows = torch.cat([pair.lora_a.to(torch.float64) for pair in updates]).T
    columns = torch.cat([pair.lora_b.to(torch.float64) for pair in updates], dim=1)
    r_a, r_b = (torch.linalg.qr(stacked, mode="r").R for stacked in (rows, columns))
    parts = zip(updates, r_a.split(ranks, dim=1), r_b.split(ranks, dim=1), strict=True)
    return [LoraPair(a.T.contiguous(), b.contiguous(), pair.scale) for pair, a, b in parts]
