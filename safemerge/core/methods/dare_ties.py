"""DARE, then TIES: drop entries at random, elect each entry's sign, join the entries that have it.

Each entry of either update is kept with probability ``density`` and divided by it, else set to zero, in
place of TIES' trimming; then as in ``ties``. The result has full rank: it is stored as a low-rank
approximation.

Source: DARE, arXiv:2311.03099, and TIES-Merging, arXiv:2306.01708.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod
from safemerge.core.pruning import drop_, full_updates, join_by_sign_

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, generator: torch.Generator) -> Tensor:
    """The joined update in full."""
    assert options.density is not None  # noqa: S101 - prunes
    task, safety = (drop_(update, options.density, generator) for update in full_updates(layer))
    return join_by_sign_((task, safety), options.weights)


METHOD = MergeMethod(merge, prunes=True)
