"""Matrix products in fp32 on whatever computes them fastest."""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""PyTorch's x · wᵀ by oneDNN, in full fp32; None where this build of PyTorch lacks it."""


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left · right to ``total``.

    PyTorch multiplies fp32 by MKL, which leaves AVX-512 alone on processors that are not Intel's: oneDNN,
    which comes with PyTorch too, is twice as fast there.

    Args:
        total: (m, n), fp32; changed.
        left: (m, k), fp32.
        right: (k, n), fp32.
    """
    if _ONEDNN_LINEAR is not None and total.is_cpu:
        total += _ONEDNN_LINEAR(left, right.T, None, "none", [], "")
    else:
        total.addmm_(left, right)
