"""Control: α·ΔW_task in chosen layers only, which is ``exact`` without the safety adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.core.methods.base import Layer, MergeMethod, scaled

if TYPE_CHECKING:
    import torch

    from safemerge.core.lora import LoraPair
    from safemerge.core.options import MergeOptions


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """α·ΔW_task."""
    return scaled(layer.task, options.weights[0])


METHOD = MergeMethod(merge, needs_safety=False, weighed_sum=True)
