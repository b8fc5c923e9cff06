"""Intervals for rates, for differences measured on the same prompts, and for shares of a gain.

Pure functions of flags and scores: no files, no clock, no global random state. They are
closed formulas or a seeded resampling of the documents, so the same input always gives
the same interval. numpy is imported inside the functions that need it, to keep the gate light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING

from safemerge.errors import DataError
from safemerge.records import Estimate, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
"""Bootstrap resamples: the Monte Carlo error of an interval's end is then near 2 % of its width."""

_CHUNK_CELLS = 4_000_000
"""Resampled indices held at once, so that memory stays bounded for any number of documents."""


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


def rate_difference(arm: Mapping[str, bool], other: Mapping[str, bool], confidence: float = 0.95) -> Estimate:
    """Rate of ``arm`` minus rate of ``other``, both judged on the same prompts.

    Newcombe's square-and-add interval for paired data (his method 10): it combines the two
    Wilson intervals, corrected for the correlation between the arms, and so keeps its
    coverage for few prompts and for rates near 0 and 1, where a bootstrap collapses.

    Args:
        arm: prompt id to flag.
        other: prompt id to flag; the same ids.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        DataError: there are no prompts, or the ids differ.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635.
    """
    ids = _same_ids(arm, other)
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


def mean_difference(
    arm: Mapping[str, float], other: Mapping[str, float], confidence: float = 0.95, *, seed: int = 0
) -> Estimate:
    """Mean score of ``arm`` minus mean score of ``other`` over the same documents.

    The interval is the percentile bootstrap of the documents' differences. Not BCa: its
    acceleration is 0/0 where all differences are equal, which scores of 0 and 1 can well be.

    Args:
        arm: document id to score, finite.
        other: document id to score; the same ids.
        confidence: coverage aimed at, in (0, 1).
        seed: of the resampling.

    Raises:
        DataError: there are no documents, the ids differ, or a score is not finite.
    """
    import numpy as np

    ids = _same_ids(arm, other)
    difference = _column(arm, ids) - _column(other, ids)
    means = _resampled_means(difference[:, None], seed)[:, 0]
    low, high = np.quantile(means, _tails(confidence))
    interval = Interval(low=float(low), high=float(high), confidence=confidence)
    return Estimate(value=float(difference.mean()), interval=interval, n=len(ids))


def gain_kept(
    arm: Mapping[str, float],
    aligned: Mapping[str, float],
    fine_tuned: Mapping[str, float],
    confidence: float = 0.95,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Estimate:
    """Share of what fine-tuning gained that ``arm`` keeps: (arm − aligned) / (fine_tuned − aligned).

    The same documents are resampled for all three. A resample in which fine-tuning gained
    nothing bounds the share neither way, so it counts as −∞ at the low end and +∞ at the
    high end. Hence the share has an interval exactly where the interval of the gain lies
    above zero; elsewhere value and interval are None.

    Args:
        arm: document id to score, finite.
        aligned: the aligned model's scores; the same ids.
        fine_tuned: the fine-tuned adapter's scores; the same ids.
        confidence: coverage aimed at, in (0, 1).
        higher_is_better: the metric's direction.
        seed: of the resampling.

    Raises:
        DataError: there are no documents, the ids differ, or a score is not finite.
    """
    import numpy as np

    ids = _same_ids(arm, aligned, fine_tuned)
    sign = 1.0 if higher_is_better else -1.0
    base = _column(aligned, ids)
    parts = sign * np.stack([_column(arm, ids) - base, _column(fine_tuned, ids) - base], axis=1)
    kept, gain = _resampled_means(parts, seed).T
    low_tail, high_tail = _tails(confidence)
    positive = gain > 0
    if np.mean(~positive) >= low_tail:
        return Estimate(value=None, interval=None, n=len(ids))
    share = np.divide(kept, gain, out=np.zeros_like(kept), where=positive)
    low = np.quantile(np.where(positive, share, -np.inf), low_tail, method="lower")
    high = np.quantile(np.where(positive, share, np.inf), high_tail, method="higher")
    numerator, denominator = parts.mean(axis=0)
    interval = Interval(low=float(low), high=float(high), confidence=confidence)
    return Estimate(value=float(numerator / denominator), interval=interval, n=len(ids))


def share_won_back(
    arm: Mapping[str, bool],
    aligned: Mapping[str, bool],
    fine_tuned: Mapping[str, bool],
    confidence: float = 0.95,
    *,
    seed: int = 0,
) -> Estimate:
    """Share of the drift that ``arm`` undoes: (fine_tuned − arm) / (fine_tuned − aligned).

    Rates of flagged prompts, resampled as in :func:`gain_kept`. Value and interval are None
    where the interval of the drift does not lie above zero: there is nothing to win back.

    Args:
        arm: prompt id to flag.
        aligned: the aligned model's flags; the same ids.
        fine_tuned: the fine-tuned adapter's flags; the same ids.
        confidence: coverage aimed at, in (0, 1).
        seed: of the resampling.

    Raises:
        DataError: there are no prompts, or the ids differ.
    """
    return gain_kept(arm, fine_tuned, aligned, confidence, higher_is_better=False, seed=seed)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _same_ids(first: Mapping[str, float], *others: Mapping[str, float]) -> list[str]:
    """The ids that all mappings share, in one order; anything but equal sets is an error."""
    if not first:
        raise DataError("paired comparison: expected at least one document, got none")
    for other in others:
        if odd := sorted(first.keys() ^ other.keys()):
            shown = ", ".join(odd[:5]) + (", …" if len(odd) > 5 else "")
            raise DataError(
                f"paired comparison: expected the same documents, got {len(odd)} unpaired: {shown}"
            )
    return sorted(first)


def _column(scores: Mapping[str, float], ids: list[str]) -> NDArray[np.float64]:
    import numpy as np

    column = np.array([scores[i] for i in ids], dtype=np.float64)
    if not np.isfinite(column).all():
        worst = ids[int(np.flatnonzero(~np.isfinite(column))[0])]
        raise DataError(f"document {worst}: expected a finite score, got {scores[worst]}")
    return column


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Column means of ``values`` (n, k) over RESAMPLES resamples of its rows: (RESAMPLES, k)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    n = len(values)
    rows = max(1, _CHUNK_CELLS // n)
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in sizes])


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
