"""Magnitude pruning: keep the largest entries of both updates, add them by weight.

Each update is trimmed to the share ``density`` of its entries with the largest magnitude, as in ``ties``
and without rescaling; the result is α·ΔW_task + β·ΔW_safety of what is left. It has full rank: it is stored
as a low-rank approximation.

Source: the trimming of TIES-Merging, arXiv:2306.01708; PEFT's ``magnitude_prune`` does so with the factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod
from safemerge.core.pruning import add_, full_updates, trim_

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> Tensor:
    """The weighted sum in full."""
    assert options.density is not None  # noqa: S101 - prunes
    task, safety = full_updates(layer)
    return add_((trim_(task, options.density), trim_(safety, options.density)), options.weights)


METHOD = MergeMethod(merge, prunes=True)
