"""The projected cosine: how far a LoRA update stays within the directions of safety alignment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safemerge.core.lora import check_factors, column_factor
from safemerge.errors import DegenerateLayerError, MismatchError, NonFiniteError

ZERO_UPDATE = "the update is zero"
NO_ALIGNMENT = "alignment did not change the layer"
ZERO_PROJECTION = "the update has no part in the alignment's directions"


def projected_cosine(lora_a: Tensor, lora_b: Tensor, alignment: Tensor) -> float:
    """How much of a LoRA update survives projection onto the alignment directions.

    With W = B·A and V the alignment difference, this is cos(V·Vᵀ·W, W). No (d_out, d_out)
    or (d_out, d_in) product is built: with F a thin factor of W (see
    :func:`safemerge.core.lora.column_factor`), X = Vᵀ·F and Y = V·X,

        ρ = ‖X‖² / (‖Y‖ · ‖F‖),

    which is tr(G·XᵀX) / √(tr(G·YᵀY) · tr(G·BᵀB)) with G = A·Aᵀ. The two products with V are
    done in fp32, all else in float64; F and X are scaled to 1 in between, so that neither
    tiny nor huge weights leave the range of fp32.

    Args:
        lora_a: A, (r, d_in), any float dtype.
        lora_b: B, (d_out, r). LoRA's scale is left out: it cancels.
        alignment: V, (d_out, d_in), aligned minus unaligned weight.

    Returns:
        Unrounded cosine in [0, 1]; scaling V or W leaves it unchanged.

    Raises:
        MismatchError: shapes above do not fit.
        NonFiniteError: V, A or B holds NaN or infinity.
        DegenerateLayerError: W, V or V·Vᵀ·W is zero. The message is the reason; callers
            decide what follows, we never return 0.

    Source: arXiv:2503.17239. We omit its Frobenius scaling of the projection (it cancels).

    >>> from torch import tensor
    >>> rho = projected_cosine(tensor([[1., 0.]]), tensor([[3.], [4.]]), tensor([[1., 0.], [0., 0.]]))
    >>> round(rho, 6)
    0.6
    """
    check_factors(lora_a, lora_b)
    if alignment.shape != (lora_b.shape[0], lora_a.shape[1]):
        raise MismatchError(
            f"alignment: expected shape {(lora_b.shape[0], lora_a.shape[1])} as of the update, "
            f"got {tuple(alignment.shape)}"
        )
    directions = alignment.to(torch.float32)
    factor, factor_norm = _normalised(column_factor(lora_a, lora_b))
    x = factor.T.to(torch.float32) @ directions  # Xᵀ, (r, d_in): rows, so that V is read in its own order
    # 0 · NaN is NaN, so this catches every NaN and infinity in V, whatever the update.
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("expected finite numbers, got NaN or infinity")
    if factor_norm == 0:
        raise DegenerateLayerError(ZERO_UPDATE)
    x, x_norm = _normalised(x)
    y = x.to(torch.float32) @ directions.T  # Yᵀ, (r, d_out)
    y_norm = float(torch.linalg.vector_norm(y, dtype=torch.float64))
    if y_norm == 0:
        raise DegenerateLayerError(ZERO_PROJECTION if bool(directions.any()) else NO_ALIGNMENT)
    # With F and X scaled to norm 1, ρ = x_norm · 1² / y_norm; rounding may pass 1 by 1e-7.
    return min(1.0, x_norm / y_norm)


def _normalised(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix divided by its Frobenius norm, float64, and that norm; a zero matrix stays zero."""
    matrix = matrix.to(torch.float64)
    norm = float(torch.linalg.vector_norm(matrix))
    return (matrix / norm, norm) if norm > 0 and math.isfinite(norm) else (matrix, norm)
