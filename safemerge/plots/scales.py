"""Round figures for axes and bins."""

from __future__ import annotations

import math


def round_step(width: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least as wide; ``width`` is above 0.

    >>> [round_step(width) for width in (0.011, 0.3, 7)]
    [0.02, 0.5, 10.0]
    """
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
