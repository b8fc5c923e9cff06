"""From cosines to the layers that are merged."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from safemerge.errors import ConfigError


class Selection(NamedTuple):
    """Layers that are merged, and the threshold that tells them apart."""

    chosen: frozenset[str]
    """Module paths of the layers to merge."""
    threshold: float | None
    """τ; None where they were not chosen by their cosines."""


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

    Of n layers, ``floor(quantile · n + 1/2)`` are chosen, as :func:`select_by_count` does.

    Args:
        cosines: Module path to ρ, in [0, 1].
        quantile: Share to choose, in [0, 1].
    """
    return select_by_count(cosines, math.floor(quantile * len(cosines) + 0.5))


def select_by_count(cosines: Mapping[str, float], count: int) -> Selection:
    """Choose so many layers, those with the lowest cosines.

    Equal cosines are taken in the order of their module paths, so that the count holds and the choice
    does not depend on the order of the mapping.

    Args:
        cosines: Module path to ρ, in [0, 1].
        count: Number of layers to choose, at least 0.

    Returns:
        The layers, and as threshold the lowest cosine that was not chosen (just above the
        highest where all are chosen): without ties, ρ < τ makes the same choice.

    Raises:
        ConfigError: there are fewer layers with a cosine.
    """
    if count > len(cosines):
        raise ConfigError(f"count: expected at most the {len(cosines)} layers with a cosine, got {count}")
    ranked = sorted(cosines, key=lambda module: (cosines[module], module))
    if count < len(ranked):
        threshold = cosines[ranked[count]]
    else:
        threshold = math.nextafter(cosines[ranked[-1]], math.inf) if ranked else 0.0
    return Selection(frozenset(ranked[:count]), threshold)


def select_by_modules(modules: Collection[str], patterns: Iterable[str]) -> Selection:
    """Choose layers by their paths.

    Args:
        modules: Paths to choose from.
        patterns: Paths, or patterns as in a shell, such as ``*.mlp.down_proj``.

    Raises:
        ConfigError: a pattern chooses nothing; all such are named.
    """
    matched = {pattern: {m for m in modules if fnmatchcase(m, pattern)} for pattern in patterns}
    if idle := sorted(pattern for pattern, found in matched.items() if not found):
        raise ConfigError(f"modules: expected layers that both adapters have, got none for {', '.join(idle)}")
    return Selection(frozenset().union(*matched.values()), None)
