"""Updates at a smaller rank: exact truncation by QR and a small SVD of the factors."""

from __future__ import annotations

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair


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

    With B = Q_B·R_B and Aᵀ = Q_A·R_A, the singular values of B·A are those of the small R_B·R_Aᵀ: no
    (d_out, d_in) matrix is built of factors.

    Args:
        update: Factors, or the update in full, (d_out, d_in), which takes an SVD of it.
        rank: Largest rank of the result; the update's own where it is smaller.
        max_error: Largest relative error instead, in [0, 1).

    Returns:
        The pair, fp32, scale 1, and ‖update − pair‖ / ‖update‖ (0 for a zero update).
    """
    if isinstance(update, LoraPair):
        q_b, r_b = torch.linalg.qr(update.lora_b.to(torch.float64) * update.scale)
        q_a, r_a = torch.linalg.qr(update.lora_a.to(torch.float64).T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T)
        u, vh = q_b @ u, vh @ q_a.T
    else:
        u, s, vh = torch.linalg.svd(update.to(torch.float64), full_matrices=False)
    energy = torch.cat((s.square().flip(0).cumsum(0).flip(0), s.new_zeros(1)))  # left out at rank 0, 1, …
    total = float(energy[0])
    if rank is None:
        limit = (max_error or 0.0) ** 2 * total
        rank = max(1, int((energy > limit).sum()))
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    pair = LoraPair((root[:, None] * vh[:rank]).to(torch.float32), (u[:, :rank] * root).to(torch.float32))
    return pair, (float(energy[rank]) / total) ** 0.5 if total > 0 else 0.0
