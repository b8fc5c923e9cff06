"""The alignment difference V of a weight matrix: what safety alignment changed in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.errors import MismatchError

_BLOCK_ELEMENTS = 2**19
"""Numbers widened at once: 2 MB, which stay in a cache. Several times faster than all at once."""


class Block(NamedTuple):
    """Some whole rows, or some whole columns, of V."""

    rows: slice
    columns: slice
    values: Tensor
    """V[rows, columns], fp32, in memory that the next block may take over."""


def difference_blocks(aligned: Tensor, unaligned: Tensor) -> Iterator[Block]:
    """V = W_aligned − W_unaligned in blocks that fit a cache, subtracted in fp32 or better.

    Half-precision weights are widened before they are subtracted: their difference is
    small beside them, and rounding it to half precision would lose most of it.

    Args:
        aligned: Weight of the aligned model, (d_out, d_in), any float dtype; not changed. Weights that
            are stored transposed are read in the order they are stored in, and come as columns.
        unaligned: Weight of the unaligned model, same shape.

    Raises:
        MismatchError: the two are not float matrices of one shape.
    """
    check_weights(aligned, unaligned)
    transposed = aligned.stride(0) < aligned.stride(1)
    if transposed:
        aligned, unaligned = aligned.T, unaligned.T
    wide = torch.promote_types(torch.promote_types(aligned.dtype, unaligned.dtype), torch.float32)
    length, width = aligned.shape
    step = min(max(1, _BLOCK_ELEMENTS // max(1, width)), max(1, length))
    buffers = torch.empty(2, step, width, dtype=wide, device=aligned.device)
    for top in range(0, length, step):
        part = slice(top, min(top + step, length))
        first, second = buffers[:, : part.stop - top]
        values = first.copy_(aligned[part]).sub_(second.copy_(unaligned[part])).to(torch.float32)
        yield Block(slice(None), part, values.T) if transposed else Block(part, slice(None), values)


def alignment_difference(
    aligned: Tensor, unaligned: Tensor, device: torch.device | str | None = None
) -> Tensor:
    """V in full, for what needs all of it at once; see :func:`difference_blocks`.

    Args:
        aligned: Weight of the aligned model, (d_out, d_in), any float dtype; not changed.
        unaligned: Weight of the unaligned model, same shape.
        device: Where to put V; where the weights are, if not given.

    Returns:
        V, (d_out, d_in), fp32, in memory of its own.

    Raises:
        MismatchError: the two are not float matrices of one shape.
    """
    check_weights(aligned, unaligned)
    difference = torch.empty(aligned.shape, dtype=torch.float32, device=device or aligned.device)
    for rows, columns, values in difference_blocks(aligned, unaligned):
        difference[rows, columns] = values
    return difference


def check_weights(aligned: Tensor, unaligned: Tensor) -> None:
    """Check that two weights can be subtracted.

    Raises:
        MismatchError: the two are not float matrices of one shape.
    """
    if aligned.shape != unaligned.shape or aligned.ndim != 2:
        raise MismatchError(
            f"expected two matrices of one shape, got {tuple(aligned.shape)} in the aligned "
            f"and {tuple(unaligned.shape)} in the unaligned model"
        )
    if not (aligned.is_floating_point() and unaligned.is_floating_point()):
        raise MismatchError(
            f"expected float weights, got {aligned.dtype} in the aligned "
            f"and {unaligned.dtype} in the unaligned model"
        )
