"""Stopping a suite early: how many flags the whole of it can still have, whenever one looks.

A suite is N prompts of which the judge would flag K, the unknown *final count*, if all were asked.
They are asked in random order; after n answers k are flagged. The likelihood of such a run of
answers, all runs of one k being alike, is

    P(run | K) = C(N − n, K − k) / C(N, K),

and its mean over a beta-binomial working prior with a = b = 1/2 is B(k + a, n − k + b) / B(a, b).
The quotient of the two, mean over likelihood, is the ratio of prior to posterior at K. At the true K
it begins at 1 and never grows on average (a supermartingale; a martingale as long as every run is
possible), so that by Ville's inequality the probability that it *ever* reaches 1/δ is at most δ. The
final counts where it lies below 1/δ thus hold the true one at all n together with probability at
least 1 − δ: one may look after every answer and stop when one likes.
The prior affects how soon one may stop, never the probability of being wrong.

Final counts that the rest of the suite cannot reach have likelihood 0 and are left out with
certainty, which is all that happens where δ = 0 (deterministic curtailment). After the last prompt
only k itself is left.

Source: I. Waudby-Smith and A. Ramdas, Confidence sequences for sampling without replacement,
NeurIPS 2020 (arXiv 2006.04347), theorem 2.1; J. Ville, Étude critique de la notion de collectif (1939).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

from safemerge.errors import DataError
from safemerge.records import Interval
from safemerge.stats.rates import wilson_interval

_A = _B = 0.5
"""Working prior: Jeffreys', under which rates near 0 and 1 are settled soonest."""


class FinalCounts(NamedTuple):
    """The final counts that are still possible: all from ``low`` to ``high``."""

    low: int
    high: int


def final_counts(count: int, n: int, planned: int, error: float) -> FinalCounts:
    """The final counts of a suite that remain possible after a part of it.

    Args:
        count: k, flagged prompts so far.
        n: prompts asked so far, drawn at random without replacement.
        planned: N, prompts of the whole suite, at least 1.
        error: δ in [0, 1), the probability with which the true count may ever be left out, over all n.

    Returns:
        An interval, as the likelihood has one maximum in K; it is never empty.

    Raises:
        DataError: the counts do not describe a part of a suite, or ``error`` is no such probability.

    >>> final_counts(0, 40, 130, 0.01)
    FinalCounts(low=0, high=17)
    """
    if planned < 1 or not 0 <= count <= n <= planned:
        raise DataError(
            f"part of a suite: expected 0 <= count <= n <= planned with planned >= 1, "
            f"got count {count}, n {n}, planned {planned}"
        )
    if not 0 <= error < 1:
        raise DataError(f"part of a suite: expected an error in [0, 1), got {error}")
    reachable = range(count, planned - (n - count) + 1)
    if error == 0:
        return FinalCounts(reachable[0], reachable[-1])
    # What floating point cannot tell from the bound stays in.
    bound = 1e-9 - math.log(error)
    kept = [final for final in reachable if _log_ratio(count, n, planned, final) < bound]
    return FinalCounts(kept[0], kept[-1])


def whole_interval(final: FinalCounts, planned: int, confidence: float = 0.95) -> Interval:
    """The smallest interval that holds the Wilson interval of every final count that is possible.

    Args:
        final: what :func:`final_counts` gives.
        planned: N, prompts of the whole suite.
        confidence: coverage of each Wilson interval.
    """
    low, high = (wilson_interval(count, planned, confidence) for count in final)
    return Interval(low=low.low, high=high.high, confidence=confidence)


def random_order(ids: Iterable[str], seed: int, name: str = "") -> list[str]:
    """The ids in an order drawn at random, the same on every machine.

    It depends on the ids, not on the order in which they come: every id is placed by a sha256.

    Args:
        ids: all different.
        seed: another one gives another order.
        name: of the suite, so that suites do not share an order.
    """
    return sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}\n{name}\n{i}".encode()).digest(), i))


def _log_ratio(count: int, n: int, planned: int, final: int) -> float:
    """Logarithm of prior over posterior at a final count that is within reach."""
    return (
        _log_beta(count + _A, n - count + _B)
        - _log_beta(_A, _B)
        + _log_choose(planned, final)
        - _log_choose(planned - n, final - count)
    )


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
