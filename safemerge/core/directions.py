"""Leading singular directions of large matrices, without their whole decomposition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import NonFiniteError

_OVERSAMPLING = 10
"""Directions sketched beyond those asked for: the last of a sketch are its worst."""


class Directions(NamedTuple):
    """Singular directions of a matrix M in descending order of their values: u·diag(s)·vh is near M."""

    u: Tensor
    """(d_out, k), orthonormal columns, float64."""
    s: Tensor
    """(k,), at least 0, float64."""
    vh: Tensor
    """(k, d_in), orthonormal rows, float64."""

    def pair(self, rank: int) -> LoraPair:
        """The first ``rank`` of them as factors, fp32, each with the root of the singular values."""
        root = self.s[:rank].sqrt()
        lora_a, lora_b = root[:, None] * self.vh[:rank], self.u[:, :rank] * root
        return LoraPair(lora_a.to(torch.float32).contiguous(), lora_b.to(torch.float32).contiguous())


def leading(matrix: Tensor, count: int, *, iterations: int = 4) -> Directions:
    """The leading singular directions of a matrix, by randomised subspace iteration.

    A random block is multiplied by the matrix and its transpose in turn, and made orthonormal in between;
    the decomposition of what the matrix has in the span of the result is small. The block is drawn from a
    generator with a fixed seed, so the result depends on the matrix alone. Small matrices, and those of
    which a good part is asked for, are decomposed exactly.

    What it costs: where singular values fall off, the result is exact but for the rounding of fp32. Where
    they are all alike, as in noise, directions cannot be told apart, and the error of the approximation
    exceeds the smallest possible by less than a hundredth of itself.

    Args:
        matrix: (d_out, d_in), any float dtype; multiplied in fp32, all else is done in float64.
        count: Directions wanted, at least 1.
        iterations: Multiplications by the matrix and its transpose; each reads the matrix twice.

    Returns:
        At least ``min(count, d_out, d_in)`` directions: a few more, if less exact, come for nothing.

    Raises:
        NonFiniteError: the matrix holds NaN or infinity.

    Source: Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.4 and 5.1.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("expected finite numbers, got NaN or infinity")
    width = count + _OVERSAMPLING
    if 2 * width >= min(matrix.shape):
        return Directions(*torch.linalg.svd(matrix.to(torch.float64), full_matrices=False))
    matrix = matrix.to(torch.float32)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    left = _orthonormal(matrix @ block)
    for _ in range(iterations):
        left = _orthonormal(matrix @ _orthonormal(matrix.T @ left))
    u, s, vh = torch.linalg.svd((left.T @ matrix).to(torch.float64), full_matrices=False)
    return Directions(left.to(torch.float64) @ u, s, vh)


def _orthonormal(block: Tensor) -> Tensor:
    """Orthonormal columns of the same span, fp32."""
    basis: Tensor = torch.linalg.qr(block.to(torch.float64)).Q
    return basis.to(torch.float32)
