"""DARE of the updates: drop entries of both at random, rescale the rest, add them by weight.

Each entry of ΔW_task and of ΔW_safety is kept with probability ``density`` and divided by it, else set to
zero; the result is α times the one plus β times the other, whose expectation is ``exact``. It has full
rank: stored as a low-rank approximation, most of what was random in it is lost, and the layers' errors
in the report say how much. ``peft_dare_linear`` prunes the factors instead, which is another thing.

Source: DARE, arXiv:2311.03099.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod
from safemerge.core.pruning import add_, drop_, full_updates

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, generator: torch.Generator) -> Tensor:
    """The weighted sum in full."""
    assert options.density is not None  # noqa: S101 - prunes
    task, safety = (drop_(update, options.density, generator) for update in full_updates(layer))
    return add_((task, safety), options.weights)


METHOD = MergeMethod(merge, prunes=True)
