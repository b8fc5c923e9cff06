"""Updates at a smaller rank, and what that loses: the best approximation, by small decompositions."""

from __future__ import annotations

import torch
from torch import Tensor

from safemerge.core.directions import Directions, leading
from safemerge.core.lora import LoraPair

_RESOLUTION = 1e-7
"""Relative errors below it are not told from 0: the factors are stored in fp32."""
_FIRST_COUNT = 32
"""Directions of a dense update that are tried first where an error is asked for."""
_BLOCK_ELEMENTS = 2**22
"""Rows of a dense update are compared with its approximation in blocks of 16 MB."""


def padded(pair: LoraPair, rank: int) -> LoraPair:
    """The same update with zero rows of A and zero columns of B up to ``rank``."""
    missing = rank - pair.rank
    if missing == 0:
        return pair
    return LoraPair(
        torch.nn.functional.pad(pair.lora_a, (0, 0, 0, missing)),
        torch.nn.functional.pad(pair.lora_b, (0, missing)),
        pair.scale,
    )


def compressed(
    update: LoraPair | Tensor, *, rank: int | None = None, max_error: float | None = None
) -> tuple[LoraPair, float]:
    """The best approximation of an update in Frobenius norm, at a rank or the smallest that is good enough.

    Factors: with B = Q_B·R_B and Aᵀ = Q_A·R_A, the singular values of B·A are those of the small
    R_B·R_Aᵀ. This is exact, and no (d_out, d_in) matrix is built.

    A matrix in full: its leading directions by subspace iteration
    (:func:`safemerge.core.directions.leading` says how near they come to the best). The error is measured
    on the matrix itself, so it is exact whatever the directions.

    Args:
        update: Factors, or the update in full, (d_out, d_in); finite. Not changed.
        rank: Largest rank of the result; the update's own where it is smaller.
        max_error: Largest relative error instead, in [0, 1); 0, and no choice at all, mean the smallest
            rank that is as good as fp32.

    Returns:
        The pair, fp32, scale 1, and ‖update − pair‖ / ‖update‖ before its factors are rounded to fp32,
        which adds less than 1e-7 (0 for a zero update).
    """
    limit = None if rank is not None else max(max_error or 0.0, _RESOLUTION) ** 2
    if isinstance(update, LoraPair):
        found, rest = _of_factors(update), 0.0
    else:
        found, rest = _of_matrix(update, rank, limit)
    squares = found.s.square()
    left_out = rest + torch.cat((squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)))  # at rank 0, 1, …
    total = float(left_out[0])
    if limit is not None:
        rank = int((left_out > limit * total).sum())
    rank = min(max(1, rank or 0), len(found.s))
    return found.pair(rank), (float(left_out[rank]) / total) ** 0.5 if total > 0 else 0.0


def _of_factors(update: LoraPair) -> Directions:
    """Every singular direction of B·A."""
    q_b, r_b = torch.linalg.qr(update.lora_b.to(torch.float64) * update.scale)
    q_a, r_a = torch.linalg.qr(update.lora_a.to(torch.float64).T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return Directions(q_b @ u, s, vh @ q_a.T)


def _of_matrix(update: Tensor, rank: int | None, limit: float | None) -> tuple[Directions, float]:
    """Enough leading directions for the rank or the limit, and the square of the norm they leave out.

    Directions lie at right angles to what they leave out, so squares add up.
    """
    total = float(torch.linalg.vector_norm(update, dtype=torch.float64)) ** 2
    count = rank or _FIRST_COUNT
    while True:
        found = leading(update, count, iterations=2)
        rest = _square_left_out(update, found)
        if limit is None or rest <= limit * total or len(found.s) == min(update.shape):
            return found, rest
        count *= 2


def _square_left_out(update: Tensor, found: Directions) -> float:
    """‖update − u·diag(s)·vh‖²; a difference of squares would lose half of the figures of a small one."""
    wide = torch.promote_types(update.dtype, torch.float32)
    columns, rows = (found.u * found.s).to(wide), found.vh.to(wide)
    step = max(1, _BLOCK_ELEMENTS // update.shape[1])
    square = 0.0
    for top in range(0, update.shape[0], step):
        block = slice(top, top + step)
        norm = torch.linalg.vector_norm(
            torch.addmm(update[block].to(wide), columns[block], rows, alpha=-1), dtype=torch.float64
        )
        square += float(norm) ** 2
    return square
