"""PEFT's ``linear`` of the factors, as in the published script: not the paper's formula.

PEFT adds the A's and the B's separately, each times √|weight · scale|, and puts the sign of
weight · scale on the A's. The product so holds the cross terms √(αβ)(B_task·A_safety + B_safety·A_task).

Source: ``add_weighted_adapter(combination_type="linear")`` of PEFT.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Layer, MergeMethod, check_shapes
from safemerge.errors import MismatchError

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions


def add_factors(
    task: LoraPair, safety: LoraPair | None = None, weights: tuple[float, float] = (1.0, 0.0)
) -> LoraPair:
    """What PEFT makes of the two; with one adapter alone, that adapter, its scale spread over both factors.

    Raises:
        MismatchError: shapes or ranks of the two differ; PEFT cannot add such factors either.
    """
    a, b = _rooted(task.lora_a, task.lora_b, weights[0] * task.scale)
    if safety is None:
        return LoraPair(a, b)
    check_shapes(task, safety)
    if task.rank != safety.rank:
        raise MismatchError(
            "expected adapters of one rank (PEFT's sums take no others), "
            f"got r={task.rank} in the task and r={safety.rank} in the safety adapter"
        )
    a_safety, b_safety = _rooted(safety.lora_a, safety.lora_b, weights[1] * safety.scale)
    return LoraPair(a + a_safety, b + b_safety)


def _rooted(lora_a: Tensor, lora_b: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    root = math.sqrt(abs(weight))
    return lora_a.to(torch.float32) * math.copysign(root, weight), lora_b.to(torch.float32) * root


def merge(layer: Layer, options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """PEFT's sum of the factors."""
    return add_factors(layer.task, layer.safety, options.weights)


def keep(layer: Layer, _options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """ΔW_task, spread over both factors as PEFT does."""
    return add_factors(layer.task)


METHOD = MergeMethod(merge, keep)
