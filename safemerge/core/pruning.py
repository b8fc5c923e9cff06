"""Ways to thin out updates and to join what is left of them, entry by entry.

The functions work on updates in full, (d_out, d_in), fp32. A layer of a large model takes hundreds of
megabytes, so they change what they are given, and go through it in blocks of rows that stay in a core's
cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from safemerge.core.methods.base import Layer, check_shapes

_BLOCK_ELEMENTS = 2**18
"""Entries of a block: 1 MB."""


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
    smallest = nth_magnitude(update, max(1, round(density * update.numel())))
    for block in _blocks(update):
        block.masked_fill_(block.abs() < smallest, 0)
    return update


def nth_magnitude(update: Tensor, n: int) -> Tensor:
    """The n-th largest magnitude among the entries of a matrix, exactly, by counting.

    The bits of floats of one sign sort as the floats do: the upper half of them is counted, then the lower
    half of those that share the upper half looked for.

    Args:
        update: fp32.
        n: From 1 to the number of entries.
    """
    upper = sum(torch.bincount(_bits(block) >> 16, minlength=2**15) for block in _blocks(update))
    top, n = _nth_from_top(torch.as_tensor(upper), n)
    lower = sum(
        torch.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=2**16)
        for bits in map(_bits, _blocks(update))
    )
    found = top << 16 | _nth_from_top(torch.as_tensor(lower), n)[0]
    return torch.tensor(found, dtype=torch.int32, device=update.device).view(torch.float32)


def _nth_from_top(counts: Tensor, n: int) -> tuple[int, int]:
    """The bin that holds the n-th entry, counted from the last bin, and which of that bin's entries it is."""
    reached = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(reached, n))
    return len(counts) - 1 - index, n - int(reached[index] - counts.flip(0)[index])


def _bits(block: Tensor) -> Tensor:
    return block.abs().flatten().view(torch.int32)


def _blocks(update: Tensor) -> Iterator[Tensor]:
    """The matrix in views of some rows each."""
    yield from torch.split(update, max(1, _BLOCK_ELEMENTS // update.shape[-1]))


def drop_(update: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each entry with probability ``density`` and divide it by that, else set it to zero.

    Args:
        update: (d_out, d_in); changed.
        density: Probability, in (0, 1].
        generator: Source of the draws, on the CPU.
    """
    for block in _blocks(update):
        dropped = torch.rand(block.shape, generator=generator) >= density
        block.masked_fill_(dropped.to(block.device), 0).div_(density)
    return update


def add_(updates: tuple[Tensor, Tensor], weights: tuple[float, float]) -> Tensor:
    """The weighted sum of two updates, in the place of the first."""
    return updates[0].mul_(weights[0]).add_(updates[1], alpha=weights[1])


def join_by_sign_(updates: tuple[Tensor, Tensor], weights: tuple[float, float]) -> Tensor:
    """Join two updates where they agree in sign, and let the stronger have its way where they do not.

    With weighted entries x = α·a and y = β·b, the elected sign is that of x + y. Entries with it are
    averaged with their weights' magnitudes, and the average is multiplied by |α| + |β|:

        (|α| + |β|) · (sum of x and y with the elected sign) / (sum of |α| and |β| of these).

    So two entries that agree give x + y, as a weighted sum does; one that stands alone, because the
    other is zero or was voted down, gives ±(|α| + |β|)·a: its own full value where the weights are
    positive and add up to 1. Where x + y is zero, so is the result.

    Args:
        updates: Two (d_out, d_in) matrices; changed.
        weights: α and β.
    """
    alpha, beta = weights
    for x, y in zip(*map(_blocks, updates), strict=True):
        x.mul_(alpha)
        y.mul_(beta)
        elected = torch.sign(x + y)
        x_agrees, y_agrees = x * elected > 0, y * elected > 0
        shares = abs(alpha) * x_agrees + abs(beta) * y_agrees
        shares.masked_fill_(elected == 0, 1)  # none agrees: the sum is zero, whatever it is divided by
        x.masked_fill_(~x_agrees, 0).add_(y.masked_fill_(~y_agrees, 0))
        x.mul_(abs(alpha) + abs(beta)).div_(shares)
    return updates[0]
