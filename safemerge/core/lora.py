"""One LoRA update of one weight matrix, ΔW = scale · B · A, and its norm without ever building it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from safemerge.errors import MismatchError


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two factors of a LoRA update and the factor that scales their product.

    Raises:
        MismatchError: the factors are no real matrices of one common rank, or the scale is not finite.
    """

    lora_a: Tensor
    """A, (r, d_in), any float dtype."""
    lora_b: Tensor
    """B, (d_out, r)."""
    scale: float = 1.0
    """What PEFT calls scaling: lora_alpha / r, or lora_alpha / √r with rsLoRA."""

    def __post_init__(self) -> None:
        check_factors(self.lora_a, self.lora_b)
        if not math.isfinite(self.scale):
            raise MismatchError(f"LoRA scale: expected a finite number, got {self.scale}")

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.lora_a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return self.lora_b.shape[0], self.lora_a.shape[1]

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW in full, (d_out, d_in), computed in ``dtype``: for checks and small layers."""
        return self.scale * (self.lora_b.to(dtype) @ self.lora_a.to(dtype))

    def norm(self) -> float:
        """Frobenius norm of ΔW, computed in float64, once: a sweep reports it for every candidate."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return abs(self.scale) * float(torch.linalg.vector_norm(column_factor(self.lora_a, self.lora_b)))


def check_factors(lora_a: Tensor, lora_b: Tensor) -> None:
    """Check that B · A is a product of two real matrices.

    Raises:
        MismatchError: it is not.
    """
    got = f"lora_a {tuple(lora_a.shape)} {lora_a.dtype}, lora_b {tuple(lora_b.shape)} {lora_b.dtype}"
    if not (lora_a.is_floating_point() and lora_b.is_floating_point()):
        raise MismatchError(f"LoRA factors: expected float tensors, got {got}")
    if lora_a.ndim != 2 or lora_b.ndim != 2 or lora_a.shape[0] != lora_b.shape[1] or 0 in lora_a.shape:
        raise MismatchError(f"LoRA factors: expected lora_a (r, d_in) and lora_b (d_out, r), got {got}")


def column_factor(lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """A thin matrix F with F·Fᵀ = (B·A)(B·A)ᵀ: it stands for B·A in every norm of a product M·B·A.

    With Aᵀ = Q·R (Q orthonormal) we have B·A = (B·Rᵀ)·Qᵀ, so F = B·Rᵀ. This is the
    low-rank identity ‖M·B·A‖² = tr(G · (MB)ᵀ(MB)) with G = A·Aᵀ = RᵀR; the square root of
    G is taken first so that no figure is lost where A's rows are nearly dependent.

    Args:
        lora_a: A, (r, d_in).
        lora_b: B, (d_out, r).

    Returns:
        F, (d_out, min(r, d_in)), float64.
    """
    triangle: Tensor = torch.linalg.qr(lora_a.to(torch.float64).T, mode="r").R
    return lora_b.to(torch.float64) @ triangle.T
