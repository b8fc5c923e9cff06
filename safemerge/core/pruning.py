"""Ways to thin out updates and to join what is left of them, entry by entry.

The functions work on updates in full, (d_out, d_in), and change what they are given: a layer of a large
model takes hundreds of megabytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safemerge.core.methods.base import Layer, check_shapes


def full_updates(layer: Layer) -> tuple[Tensor, Tensor]:
    """ΔW_task and ΔW_safety in full, fp32, in memory of their own.

    Raises:
        MismatchError: they differ in shape.
    """
    assert layer.safety is not None  # noqa: S101 - needs_safety
    check_shapes(layer.task, layer.safety)
    return layer.task.delta(), layer.safety.delta()


def trim_(update: Tensor, density: float) -> Tensor:
    """Set all but the entries of largest magnitude to zero.

    Of n entries, ``round(density · n)`` are kept, at least one; entries as large as the smallest of them
    are kept too.

    Args:
        update: (d_out, d_in); changed.
        density: Share to keep, in (0, 1].
    """
    kept = max(1, round(density * update.numel()))
    magnitudes = update.abs()
    smallest = magnitudes.flatten().kthvalue(update.numel() - kept + 1).values
    return update.masked_fill_(magnitudes < smallest, 0)


def drop_(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each entry with probability ``density`` and divide it by that, else set it to zero.

    Args:
        update: (d_out, d_in); changed.
        density: Probability, in (0, 1].
        generator: Source of the draws, on the CPU.
    """
    dropped = torch.rand(update.shape, generator=generator) >= density
    return update.masked_fill_(dropped.to(update.device), 0).div_(density)


def add_(updates: tuple[Tensor, Tensor], weights: tuple[float, float]) -> Tensor:
    """The weighted sum of two updates, in the place of the first."""
    return updates[0].mul_(weights[0]).add_(updates[1], alpha=weights[1])


def join_by_sign_(updates: tuple[Tensor, Tensor], weights: tuple[float, float]) -> Tensor:
    """Join two updates where they agree in sign, and let the stronger have its way where they do not.

    With weighted entries x = α·a and y = β·b, the elected sign is that of x + y. Entries with it are
    averaged with their weights' magnitudes, and the average is multiplied by |α| + |β|:

        (|α| + |β|) · (sum of x and y with the elected sign) / (sum of |α| and |β| of these).

    So two entries that agree give x + y, as a weighted sum does; one that stands alone, because the
    other is zero or was voted down, gives (1 + |β|/|α|)·x: its own full value a where α + β = 1. Where
    x + y is zero, so is the result.

    Args:
        updates: Two (d_out, d_in) matrices; changed.
        weights: α and β.
    """
    alpha, beta = weights
    x, y = updates[0].mul_(alpha), updates[1].mul_(beta)
    elected = x + y
    x_agrees, y_agrees = x * elected > 0, y * elected > 0
    shares = abs(alpha) * x_agrees + abs(beta) * y_agrees
    shares.masked_fill_(elected == 0, 1)  # none agrees: the sum is zero, whatever it is divided by
    joined = x.masked_fill_(~x_agrees, 0).add_(y.masked_fill_(~y_agrees, 0))
    return joined.mul_(abs(alpha) + abs(beta)).div_(shares)
