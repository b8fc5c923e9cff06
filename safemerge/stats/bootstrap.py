"""Scores of the same documents: differences of their means and shares of a gain, by resampling.

The resampling is seeded, so the same input always gives the same interval. numpy is imported
inside the functions that need it, to keep the gate light.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from safemerge.errors import DataError
from safemerge.records import Estimate, Interval
from safemerge.stats.paired import same_ids
from safemerge.stats.rates import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 10_000
"""Draws behind an interval: the Monte Carlo error of its ends is then near 2 % of its width."""

FEWEST_DOCUMENTS = 8
"""Fewest documents whose interval nearly keeps its coverage where scores are not just right or wrong. All
draws lie between the smallest score and the largest, so that an end that 2.5 % of samples should miss is
missed by 25 % of two, 9 % of five and 6 % of eight (normal scores, simulated)."""

_CHUNK_CELLS = 4_000_000
"""Weights held at once, so that memory stays bounded for any number of documents."""


class GainKept(NamedTuple):
    """What fine-tuning gained, and the share of it that an arm keeps."""

    gain: Estimate
    share: Estimate | None
    """None where the scores cannot tell, because the gain may be zero or worse."""


def mean_score(scores: Mapping[str, float], confidence: float = 0.95, *, seed: int = 0) -> Estimate:
    """Mean of an arm's scores, with the interval of a Bayesian bootstrap.

    It says how sure the figure is by itself. Two arms on the same documents differ more surely than
    such intervals show: :func:`mean_difference` compares them.

    Args:
        scores: document id to score, finite.
        confidence: coverage aimed at, in (0, 1).
        seed: of the resampling.

    Raises:
        DataError: there are fewer than two documents, or a score is not finite.
    """
    import numpy as np

    table = _table(scores)
    low, high = np.quantile(_drawn_means(table, seed), np.array(_tails(confidence)))
    interval = Interval(low=float(low), high=float(high), confidence=confidence)
    return Estimate(value=float(table.mean()), interval=interval, n=len(table))


def mean_difference(
    arm: Mapping[str, float],
    other: Mapping[str, float],
    confidence: float = 0.95,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> Estimate:
    """By how much ``arm`` does better than ``other`` on the same documents.

    Args:
        arm: document id to score, finite.
        other: document id to score; the same ids.
        confidence: coverage aimed at, in (0, 1).
        higher_is_better: the metric's direction.
        seed: of the resampling.

    Returns:
        The difference of the mean scores, positive where ``arm`` does better whatever the metric's
        direction, with the interval of a paired Bayesian bootstrap.

    Raises:
        DataError: there are fewer than two documents, the ids differ, or a score is not finite.
    """
    sign = 1.0 if higher_is_better else -1.0
    scores = sign * _table(arm, other)
    ours, theirs = _drawn_means(scores, seed).T
    return _difference(scores.mean(axis=0), ours - theirs, len(scores), confidence)


def gain_kept(
    arm: Mapping[str, float],
    aligned: Mapping[str, float],
    fine_tuned: Mapping[str, float],
    confidence: float = 0.95,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
) -> GainKept:
    """Share of what fine-tuning gained that ``arm`` keeps: (arm − aligned) / (fine_tuned − aligned).

    The same documents are drawn for all three arms. A draw in which fine-tuning gained
    nothing bounds the share neither way, so it counts as −∞ at the low end and +∞ at the
    high end. Hence the share has an interval exactly where the interval of the gain lies
    above zero; elsewhere the scores cannot tell, and it is None.

    Args:
        arm: document id to score, finite.
        aligned: the aligned model's scores; the same ids.
        fine_tuned: the fine-tuned adapter's scores; the same ids.
        confidence: coverage aimed at, in (0, 1).
        higher_is_better: the metric's direction.
        seed: of the resampling.

    Returns:
        The gain, positive where fine-tuning helped whatever the metric's direction, and the share.

    Raises:
        DataError: there are fewer than two documents, the ids differ, or a score is not finite.
    """
    import numpy as np

    scores = _table(fine_tuned, aligned, arm)
    n, sign = len(scores), 1.0 if higher_is_better else -1.0
    tuned, base, kept = sign * _drawn_means(scores, seed).T
    gain = _difference(sign * scores.mean(axis=0), tuned - base, n, confidence)
    if gain.interval.low <= 0:
        return GainKept(gain, None)
    positive = tuned > base
    share = np.divide(kept - base, tuned - base, out=np.zeros(RESAMPLES), where=positive)
    low, high = _tails(confidence)
    # These order statistics are finite: fewer draws than a tail holds gained nothing.
    interval = Interval(
        low=float(np.quantile(np.where(positive, share, -np.inf), low, method="higher")),
        high=float(np.quantile(np.where(positive, share, np.inf), high, method="lower")),
        confidence=confidence,
    )
    mean_tuned, mean_base, mean_kept = scores.mean(axis=0)
    value = float((mean_kept - mean_base) / (mean_tuned - mean_base))
    return GainKept(gain, Estimate(value=value, interval=interval, n=n))


def share_won_back(
    arm: Mapping[str, bool],
    aligned: Mapping[str, bool],
    fine_tuned: Mapping[str, bool],
    confidence: float = 0.95,
    *,
    seed: int = 0,
) -> Estimate | None:
    """Share of the drift that ``arm`` undoes: (fine_tuned − arm) / (fine_tuned − aligned).

    Rates of flagged prompts, judged as in :func:`gain_kept`. None where the interval of the
    drift does not lie above zero: there is nothing to win back.

    Args:
        arm: prompt id to flag.
        aligned: the aligned model's flags; the same ids.
        fine_tuned: the fine-tuned adapter's flags; the same ids.
        confidence: coverage aimed at, in (0, 1).
        seed: of the resampling.

    Raises:
        DataError: there are fewer than two prompts, or the ids differ.
    """
    # The way back is a gain that starts from the fine-tuned adapter and ends at the aligned model.
    back = gain_kept(arm, fine_tuned, aligned, confidence, higher_is_better=False, seed=seed)
    return back.share


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _table(*arms: Mapping[str, float]) -> NDArray[np.float64]:
    """Scores of the arms over the documents they share: (documents, arms), all finite."""
    import numpy as np

    ids = same_ids(*arms)
    if len(ids) < 2:
        raise DataError("paired comparison: expected at least two documents, got one")
    table = np.array([[arm[i] for arm in arms] for i in ids], dtype=np.float64)
    if bad := [ids[row] for row in np.flatnonzero(~np.isfinite(table).all(axis=1))]:
        raise DataError(f"paired comparison: expected finite scores, got others for {listed(bad)}")
    return table


def _drawn_means(scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Column means under RESAMPLES draws of document weights: (RESAMPLES, arms).

    The Bayesian bootstrap: weights from a Dirichlet distribution, 1 for each document. Where
    all scores are 0 or 1, documents are counted by their pattern over the arms and every
    pattern, seen or not, gets a share of two extra documents, as Agresti and Min add for
    paired rates; without these an interval collapses where an arm is always or never right.

    Source: D. B. Rubin, Annals of Statistics 9 (1981) 130; A. Agresti and Y. Min,
    Statistics in Medicine 24 (2005) 729.
    """
    import numpy as np

    rows, concentration = scores, np.ones(len(scores))
    if np.isin(scores, (0, 1)).all():
        rows = np.array(list(product((0.0, 1.0), repeat=scores.shape[1])))
        seen = (scores[:, None, :] == rows).all(axis=2).sum(axis=0)
        concentration = seen + 2 / len(rows)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // len(rows))
    sizes = [min(chunk, RESAMPLES - start) for start in range(0, RESAMPLES, chunk)]
    weights = (rng.standard_gamma(concentration, size=(size, len(rows))) for size in sizes)
    return np.concatenate([w @ rows / w.sum(axis=1, keepdims=True) for w in weights])


def _difference(
    means: NDArray[np.float64], draws: NDArray[np.float64], n: int, confidence: float
) -> Estimate:
    """First mean minus second, with the percentile interval of the drawn differences."""
    import numpy as np

    low, high = np.quantile(draws, np.array(_tails(confidence)))
    interval = Interval(low=float(low), high=float(high), confidence=confidence)
    return Estimate(value=float(means[0] - means[1]), interval=interval, n=n)
