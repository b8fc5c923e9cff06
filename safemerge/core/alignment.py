"""The alignment difference V of a weight matrix: what safety alignment changed in it."""

from __future__ import annotations

import torch
from torch import Tensor

from safemerge.errors import MismatchError


def alignment_difference(aligned: Tensor, unaligned: Tensor) -> Tensor:
    """V = W_aligned − W_unaligned, subtracted in fp32 or better.

    Half-precision weights are widened before they are subtracted: their difference is
    small beside them, and rounding it to half precision would lose most of it.

    Args:
        aligned: Weight of the aligned model, (d_out, d_in), any float dtype; not changed.
        unaligned: Weight of the unaligned model, same shape.

    Returns:
        V, (d_out, d_in), fp32, in memory of its own.

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
    if torch.float64 in (aligned.dtype, unaligned.dtype):
        return (aligned.double() - unaligned.double()).float()
    return aligned.to(torch.float32, copy=True).sub_(unaligned)
