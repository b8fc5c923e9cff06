"""A weight with its update folded in: what a LoRA or DoRA layer computes, as one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Update
from safemerge.errors import MismatchError

_ALL = slice(None)


def updated_weight(
    weight: Tensor,
    update: Update,
    *,
    rows: slice = _ALL,
    columns: slice = _ALL,
    magnitude: Tensor | None = None,
) -> Tensor:
    """Some rows and columns of W + ΔW, or with DoRA of m · (W + ΔW) / ‖W + ΔW‖, row by row.

    Args:
        weight: Those rows and columns of W, fp32 or fp64; computed in its dtype.
        update: ΔW of the whole matrix, (d_out, d_in).
        rows: Which rows of ΔW ``weight`` stands for.
        columns: Which columns; all of them where there is a magnitude, since norms are of whole rows.
        magnitude: m of DoRA for the whole matrix, (d_out,), any float dtype.

    Returns:
        A new tensor of the shape and dtype of ``weight``. A row of DoRA whose norm is zero is not finite.

    Raises:
        MismatchError: ``weight`` has another shape than those rows and columns of ΔW.

    Source: LoRA arXiv:2106.09685, DoRA arXiv:2402.09353 (its columns are our rows).

    >>> updated_weight(torch.zeros(1, 2), torch.tensor([[3., 4.]]), magnitude=torch.tensor([10.]))
    tensor([[6., 8.]])
    """
    dtype = weight.dtype
    if isinstance(update, LoraPair):
        lora_b, lora_a = update.lora_b[rows].to(dtype), update.lora_a[:, columns].to(dtype)
        _check_shape(weight, (lora_b.shape[0], lora_a.shape[1]))
        result = torch.addmm(weight, lora_b, lora_a, alpha=update.scale)
    else:
        delta = update[rows, columns]
        _check_shape(weight, tuple(delta.shape))
        result = weight + delta.to(dtype)
    if magnitude is None:
        return result
    norms: Tensor = torch.linalg.vector_norm(result, dim=1, dtype=dtype)
    return result * (magnitude[rows].to(dtype) / norms)[:, None]


def _check_shape(weight: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(weight.shape) != expected:
        raise MismatchError(f"expected a weight of shape {expected}, got {tuple(weight.shape)}")
