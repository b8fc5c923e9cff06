"""TIES of the updates: trim both, elect each entry's sign, join the entries that have it.

Each update is trimmed to the share ``density`` of its entries with the largest magnitude (20 % in the
paper). Of the weighted entries α·ΔW_task and β·ΔW_safety left, the sign of their sum is elected; those
that have it are averaged by weight, and the average is multiplied by |α| + |β|
(:func:`safemerge.core.pruning.join_by_sign_`). With equal weights of sum 1 this is the paper's mean with
its λ = 1. Ours are the weights, and that a sum of exactly zero elects no sign and gives zero. Trimmed layer
by layer, not over the whole adapter. The result has full rank: it is stored as a low-rank approximation.

Source: TIES-Merging, arXiv:2306.01708.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod
from safemerge.core.pruning import full_updates, join_by_sign_, trim_

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> Tensor:
    """The joined update in full."""
    assert options.density is not None  # noqa: S101 - prunes
    task, safety = full_updates(layer)
    return join_by_sign_((trim_(task, options.density), trim_(safety, options.density)), options.weights)


METHOD = MergeMethod(merge, prunes=True)
