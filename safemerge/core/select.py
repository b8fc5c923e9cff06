"""From cosines to the layers that are merged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Selection(NamedTuple):
    """Layers that left the safe subspace, and the threshold that tells them apart."""

    chosen: frozenset[str]
    """Module paths of the layers to merge."""
    threshold: float
    """τ."""


def select_by_threshold(cosines: Mapping[str, float], threshold: float) -> Selection:
    """Choose the layers with ρ < τ, strictly, as the paper does.

    Args:
        cosines: Module path to ρ, in [0, 1].
        threshold: τ. At 0 or below it chooses nothing, above 1 everything.
    """
    return Selection(
        frozenset(module for module, rho in cosines.items() if rho < threshold), float(threshold)
    )


def select_by_quantile(cosines: Mapping[str, float], quantile: float) -> Selection:
    """Choose the given share of the layers, those with the lowest cosines.

    Of n layers, ``floor(quantile · n + 1/2)`` are chosen. Equal cosines are taken in the
    order of their module paths, so that the count holds and the choice does not depend on
    the order of the mapping.

    Args:
        cosines: Module path to ρ, in [0, 1].
        quantile: Share to choose, in [0, 1].

    Returns:
        The layers, and as threshold the lowest cosine that was not chosen (just above the
        highest where all are chosen): without ties, ρ < τ makes the same choice.
    """
    ranked = sorted(cosines, key=lambda module: (cosines[module], module))
    count = math.floor(quantile * len(ranked) + 0.5)
    if count < len(ranked):
        threshold = cosines[ranked[count]]
    else:
        threshold = math.nextafter(cosines[ranked[-1]], math.inf) if ranked else 0.0
    return Selection(frozenset(ranked[:count]), threshold)
