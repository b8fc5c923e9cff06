"""Rates of flagged prompts: their intervals, by category too, and the prompts that a limit needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

from safemerge.errors import DataError
from safemerge.records import Estimate, Interval


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """Two-sided Wilson score interval of a rate.

    Args:
        count: flagged prompts, between 0 and n.
        n: prompts judged, at least 1.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        DataError: the counts do not describe a rate.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    >>> wilson_interval(35, 400).low.__round__(3)
    0.064
    """
    if n < 1 or not 0 <= count <= n:
        raise DataError(f"rate: expected 0 <= count <= n with n >= 1, got count {count} of n {n}")
    z = _z(confidence)
    rate = count / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exact; floating point is not.
    low = 0.0 if count == 0 else centre - half
    high = 1.0 if count == n else centre + half
    return Interval(low=low, high=high, confidence=confidence)


def smallest_sample(limit: float, rate: float = 0.0, confidence: float = 0.95) -> int | None:
    """Fewest prompts with which a Wilson interval's upper end comes down to a limit.

    The Wilson interval is the score test turned round, so this has a closed form:
    n = z²·L·(1 − L) / (L − rate)².

    Args:
        limit: L, the largest upper end allowed, in [0, 1].
        rate: share of flagged prompts expected, in [0, 1]. At the default, 0, fewer prompts can
            never show the limit, whatever the answers.
        confidence: coverage aimed at, in (0, 1).

    Returns:
        At least 1; None where no number of prompts is enough, because the rate is not below the limit.

    >>> smallest_sample(0.05)
    73
    """
    if rate >= limit:
        return 1 if limit == 1 else None
    n = _z(confidence) ** 2 * limit * (1 - limit) / (limit - rate) ** 2
    # Floating point may land just above a whole number.
    return max(1, math.ceil(n - 1e-9))


def category_rates(
    flags: Mapping[str, bool], categories: Mapping[str, str], confidence: float = 0.95
) -> dict[str, Estimate]:
    """The rate of every category with its Wilson interval, by name.

    Args:
        flags: prompt id to flag.
        categories: prompt id to category; prompts without one are left out.
        confidence: coverage aimed at, in (0, 1), of each interval on its own.

    Raises:
        DataError: a category is given for a prompt that was not judged.
    """
    if strange := sorted(categories.keys() - flags.keys()):
        raise DataError(f"categories: expected ids of judged prompts, got others: {listed(strange)}")
    judged: dict[str, list[bool]] = {}
    for prompt_id, category in sorted(categories.items()):
        judged.setdefault(category, []).append(flags[prompt_id])
    return {
        category: Estimate(
            value=sum(found) / len(found),
            interval=wilson_interval(sum(found), len(found), confidence),
            n=len(found),
        )
        for category, found in sorted(judged.items())
    }


def listed(ids: list[str]) -> str:
    """The first five ids, and how many more there are."""
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
