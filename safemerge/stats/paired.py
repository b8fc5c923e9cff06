"""Two arms judged on the same prompts: how far their rates differ, and whether that may be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from safemerge.errors import DataError
from safemerge.records import Estimate, Interval
from safemerge.stats.rates import listed, wilson_interval


def rate_difference(arm: Mapping[str, bool], other: Mapping[str, bool], confidence: float = 0.95) -> Estimate:
    """Rate of ``arm`` minus rate of ``other``, both judged on the same prompts.

    Newcombe's square-and-add interval for paired data (his method 10): it combines the two
    Wilson intervals, corrected for the correlation between the arms, and so keeps its
    coverage for few prompts and for rates near 0 and 1.

    Args:
        arm: prompt id to flag.
        other: prompt id to flag; the same ids.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        DataError: there are no prompts, or the ids differ.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635.
    """
    ids = same_ids(arm, other)
    n = len(ids)
    both = sum(arm[i] and other[i] for i in ids)
    p_arm, p_other = sum(arm.values()) / n, sum(other.values()) / n
    one, two = (wilson_interval(sum(flags.values()), n, confidence) for flags in (arm, other))
    phi = _phi(both, sum(arm.values()), sum(other.values()), n)
    below = _square_and_add(p_arm - one.low, two.high - p_other, phi)
    above = _square_and_add(one.high - p_arm, p_other - two.low, phi)
    value = p_arm - p_other
    return Estimate(
        value=value, interval=Interval(low=value - below, high=value + above, confidence=confidence), n=n
    )


def mcnemar(
    arm: Mapping[str, bool],
    other: Mapping[str, bool],
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> float:
    """P value of McNemar's exact conditional test of two arms on the same prompts.

    Of the prompts on which the arms differ, each arm flags half where there is no difference
    between them: a binomial distribution, summed in whole numbers. The test keeps its level for any
    number of prompts, and is cautious: it rejects a true null less often than the level allows.

    Args:
        arm: prompt id to flag.
        other: prompt id to flag; the same ids.
        alternative: ``greater`` asks only whether ``arm`` is flagged more often.

    Returns:
        In (0, 1]; 1 where the arms agree on every prompt.

    Raises:
        DataError: there are no prompts, or the ids differ.

    Source: Q. McNemar, Psychometrika 12 (1947) 153; M. W. Fagerland, S. Lydersen and P. Laake,
    BMC Medical Research Methodology 13 (2013) 91.
    """
    ids = same_ids(arm, other)
    more = sum(arm[i] and not other[i] for i in ids)
    fewer = sum(other[i] and not arm[i] for i in ids)
    n = more + fewer
    if alternative == "greater":
        return _upper_tail(more, n)
    return min(1.0, 2 * _upper_tail(max(more, fewer), n))


def smallest_significant(alpha: float, tests: int = 1) -> int:
    """Fewest prompts on which a one-sided exact McNemar test can reject at all.

    Args:
        alpha: level of the test, in (0, 1).
        tests: tests that Holm's correction counts together, at least 1.

    >>> smallest_significant(0.05)
    5
    """
    return max(1, math.ceil(math.log2(tests / alpha) - 1e-9))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for being tested together, by Holm's step-down method.

    Rejecting what lies at or below a level rejects any true null with at most that
    probability, however the tests depend on each other.

    Args:
        p_values: name to p value, in [0, 1].

    Returns:
        The same names, each with its adjusted p value.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def same_ids(first: Mapping[str, float], *others: Mapping[str, float]) -> list[str]:
    """The ids that all mappings share, in one order; anything but equal sets is an error."""
    if not first:
        raise DataError("paired comparison: expected at least one document, got none")
    for other in others:
        if odd := sorted(first.keys() ^ other.keys()):
            raise DataError(f"paired comparison: expected the same documents, got unpaired {listed(odd)}")
    return sorted(first)


def _upper_tail(count: int, n: int) -> float:
    """Probability of at least ``count`` heads in n throws of a fair coin, rounded once."""
    tail: float = sum(math.comb(n, k) for k in range(count, n + 1)) / 2**n
    return tail


def _phi(both: int, one: int, two: int, n: int) -> float:
    """Correlation between two arms' flags, continuity-corrected as Newcombe does; 0 where undefined."""
    product = one * (n - one) * two * (n - two)
    if product == 0:
        return 0.0
    neither = n - one - two + both
    cross: float = both * neither - (one - both) * (two - both)
    if cross > 0:
        cross = max(cross - n / 2, 0)
    return cross / math.sqrt(product)


def _square_and_add(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))
