"""Two LoRA updates beside each other: inner product and difference, from their factors alone, in float64."""

from __future__ import annotations

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
