"""Ways to make one LoRA pair of two. Each returns fp32 factors whose scale is folded in (``scale == 1``)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import MismatchError


def scaled(pair: LoraPair, weight: float = 1.0) -> LoraPair:
    """Give weight · ΔW, with weight and scale folded into B.

    The fold rounds each entry of B once, to within 2⁻²⁴ of itself; it is exact where
    weight · scale is a power of two, as it is for lora_alpha = r, 2r or 4r at weight 1.
    """
    return LoraPair(_fp32(pair.lora_a), _times(pair.lora_b, weight * pair.scale))


def exact(task: LoraPair, safety: LoraPair, task_weight: float, safety_weight: float) -> LoraPair:
    """α·ΔW_task + β·ΔW_safety exactly, by setting the factors side by side: rank r_task + r_safety.

    Raises:
        MismatchError: the two update matrices of different shape.
    """
    _check_shapes(task, safety)
    task, safety = scaled(task, task_weight), scaled(safety, safety_weight)
    return LoraPair(
        torch.cat((task.lora_a, safety.lora_a), dim=0), torch.cat((task.lora_b, safety.lora_b), dim=1)
    )


def peft_linear(
    task: LoraPair, safety: LoraPair | None = None, task_weight: float = 1.0, safety_weight: float = 0.0
) -> LoraPair:
    """What PEFT's ``add_weighted_adapter`` gives for ``combination_type="linear"``.

    PEFT adds the A's and the B's separately, each times √|weight · scale|, and puts the
    sign of weight · scale on the A's. The product so holds the cross terms
    √(αβ)(B_task·A_safety + B_safety·A_task): it is not the paper's formula. With one
    adapter alone it is that adapter, its scale spread over both factors.

    Raises:
        MismatchError: shapes or ranks of the two differ; PEFT cannot add such factors either.
    """
    a, b = _rooted(task.lora_a, task.lora_b, task_weight * task.scale)
    if safety is None:
        return LoraPair(a, b)
    _check_addable(task, safety)
    a_safety, b_safety = _rooted(safety.lora_a, safety.lora_b, safety_weight * safety.scale)
    return LoraPair(a + a_safety, b + b_safety)


def dare_linear(
    task: LoraPair,
    safety: LoraPair,
    task_weight: float,
    safety_weight: float,
    *,
    density: float,
    generator: torch.Generator,
) -> LoraPair:
    """What PEFT gives for ``combination_type="dare_linear"``: ``peft_linear`` of randomly pruned factors.

    Each entry of A and B is kept with probability ``density`` and divided by it, else set
    to zero. Equal to PEFT in distribution; the draws differ.

    Args:
        task: Task adapter's pair.
        safety: Safety adapter's pair, of the same shape and rank.
        task_weight: α.
        safety_weight: β.
        density: Share of entries kept, in (0, 1].
        generator: Source of the draws, on the CPU wherever the factors are.

    Raises:
        MismatchError: shapes or ranks of the two differ.
    """

    def pruned(pair: LoraPair) -> LoraPair:
        a, b = (_pruned(_fp32(factor), density, generator) for factor in (pair.lora_a, pair.lora_b))
        return LoraPair(a, b, pair.scale)

    return peft_linear(pruned(task), pruned(safety), task_weight, safety_weight)


def padded(pair: LoraPair, rank: int) -> LoraPair:
    """The same update with zero rows of A and zero columns of B up to ``rank``."""
    missing = rank - pair.rank
    if missing == 0:
        return pair
    return LoraPair(
        torch.nn.functional.pad(pair.lora_a, (0, 0, 0, missing)),
        torch.nn.functional.pad(pair.lora_b, (0, missing)),
        pair.scale,
    )


def _fp32(factor: Tensor) -> Tensor:
    return factor.to(torch.float32)


def _times(factor: Tensor, weight: float) -> Tensor:
    """Multiply in float64 and round to fp32, once."""
    return (factor.to(torch.float64) * weight).to(torch.float32)


def _rooted(lora_a: Tensor, lora_b: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    root = math.sqrt(abs(weight))
    return _fp32(lora_a) * math.copysign(root, weight), _fp32(lora_b) * root


def _pruned(factor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    kept = torch.bernoulli(torch.full(factor.shape, density), generator=generator)
    return factor * kept.to(factor.device) / density


def _check_shapes(task: LoraPair, safety: LoraPair) -> None:
    if task.shape != safety.shape:
        raise MismatchError(
            f"expected updates of one shape, got {task.shape} in the task "
            f"and {safety.shape} in the safety adapter"
        )


def _check_addable(task: LoraPair, safety: LoraPair) -> None:
    _check_shapes(task, safety)
    if task.rank != safety.rank:
        raise MismatchError(
            "expected adapters of one rank (only method exact merges different ranks), "
            f"got r={task.rank} in the task and r={safety.rank} in the safety adapter"
        )
