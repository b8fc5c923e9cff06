"""The projected cosine: how far LoRA updates stay within the directions of safety alignment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.core.alignment import Block
from safemerge.core.lora import check_factors, column_factor
from safemerge.core.products import add_product
from safemerge.errors import DegenerateLayerError, MismatchError, NonFiniteError

ZERO_UPDATE = "the update is zero"
NO_ALIGNMENT = "alignment did not change the layer"
ZERO_PROJECTION = "the update has no part in the alignment's directions"

Blocks = Callable[[], Iterable[Block]]
"""Gives all of V, (d_out, d_in), block by block, as often as it is called."""


class Cosine(NamedTuple):
    """ρ of one update, or why there is none."""

    value: float | None
    """Unrounded cosine in [0, 1]; None where it is undefined."""
    undefined: str | None
    """Why it is undefined; None where it is not."""


def projected_cosine(lora_a: Tensor, lora_b: Tensor, alignment: Tensor) -> float:
    """How much of a LoRA update survives projection onto the alignment directions.

    With W = B·A and V the alignment difference, this is cos(V·Vᵀ·W, W); see
    :func:`projected_cosines` for how it is computed.

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
    (cosine,) = projected_cosines(
        [column_factor(lora_a, lora_b)], whole(alignment.to(torch.float32)), alignment.shape[1]
    )
    if cosine.value is None:
        raise DegenerateLayerError(cosine.undefined)
    return cosine.value


def projected_cosines(
    factors: Sequence[Tensor], blocks: Blocks, d_in: int, device: torch.device | str = "cpu"
) -> list[Cosine]:
    """ρ = cos(V·Vᵀ·W, W) of any number of updates W of one weight matrix, in two passes over V.

    No (d_out, d_out) or (d_out, d_in) product is built: with F a thin factor of W (see
    :func:`safemerge.core.lora.column_factor`), X = Vᵀ·F and Y = V·X,

        ρ = ‖X‖² / (‖Y‖ · ‖F‖),

    which is tr(G·XᵀX) / √(tr(G·YᵀY) · tr(G·BᵀB)) with G = A·Aᵀ. The two products with V are
    done in fp32 for the factors of all updates side by side, all else in float64 on the CPU; F and
    X are scaled to 1 in between, so that neither tiny nor huge weights leave the range of fp32.

    Args:
        factors: F of each update, (d_out, any number of columns), float64.
        blocks: V in fp32 on ``device``.
        d_in: V's number of columns.
        device: Where the products are computed.

    Raises:
        NonFiniteError: V or a factor holds NaN or infinity.
    """
    sizes = [factor.shape[1] for factor in factors]
    f, factor_norms = _stacked([factor.T for factor in factors], device)
    x = torch.zeros(f.shape[0], d_in, device=device)  # Xᵀ: rows, so that V is read in its own order
    for rows, columns, values in blocks():
        add_product(x[:, columns], f[:, rows], values)
    # 0 · NaN is NaN, so this catches every NaN and infinity in V, whatever the updates.
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError("expected finite numbers, got NaN or infinity")
    x, x_norms = _stacked(torch.split(x, sizes), device)
    y = torch.zeros_like(f)  # Yᵀ
    for rows, columns, values in blocks():
        add_product(y[:, rows], x[:, columns], values.T)
    y_norms = [
        float(torch.linalg.vector_norm(part.cpu(), dtype=torch.float64)) for part in torch.split(y, sizes)
    ]
    return [_cosine(*norms, blocks) for norms in zip(factor_norms, x_norms, y_norms, strict=True)]


def whole(alignment: Tensor) -> Blocks:
    """V, fp32, that lies in memory, as a single block."""
    return lambda: [Block(slice(None), slice(None), alignment)]


def _cosine(factor_norm: float, x_norm: float, y_norm: float, blocks: Blocks) -> Cosine:
    if factor_norm == 0:
        return Cosine(None, ZERO_UPDATE)
    if y_norm == 0:
        changed = any(bool(block.values.any()) for block in blocks())
        return Cosine(None, ZERO_PROJECTION if changed else NO_ALIGNMENT)
    # With F and X scaled to norm 1, ρ = x_norm · 1² / y_norm; rounding may pass 1 by 1e-7.
    return Cosine(min(1.0, x_norm / y_norm), None)


def _stacked(parts: Sequence[Tensor], device: torch.device | str) -> tuple[Tensor, list[float]]:
    """Matrices below each other, each divided by its Frobenius norm, fp32; and the norms."""
    scaled = [_normalised(part) for part in parts]
    return torch.cat([part.to(torch.float32) for part, _ in scaled]).to(device), [norm for _, norm in scaled]


def _normalised(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix divided by its Frobenius norm, float64, and that norm; a zero matrix stays zero."""
    matrix = matrix.cpu().to(torch.float64)
    norm = float(torch.linalg.vector_norm(matrix))
    return (matrix / norm, norm) if norm > 0 and math.isfinite(norm) else (matrix, norm)
