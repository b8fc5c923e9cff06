"""Stopping early: worked cases, exact probabilities of being wrong, and simulated suites.

``error_of`` and ``coverage_miss`` follow every run of answers that a suite with a given final count
can give, weighted by its probability, so that they are exact up to rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from safemerge.errors import DataError
from safemerge.stats import wilson_interval
from safemerge.stats.sequential import FinalCounts, final_counts, random_order

LIMITS = (0.15, 0.3)


def outcome(final, planned, limit):
    """The gate's bound on a whole suite: pass, cannot tell, fail."""
    if wilson_interval(final, planned).high <= limit:
        return "pass"
    return "fail" if final / planned > limit else "cannot tell"


@functools.cache
def settled(planned, limit, error):
    """(n, k) to the outcome that all possible final counts share; without those that are open."""
    of = [outcome(final, planned, limit) for final in range(planned + 1)]
    states = ((n, k) for n in range(1, planned + 1) for k in range(n + 1))
    ends = {(n, k): final_counts(k, n, planned, error) for n, k in states}
    return {state: of[low] for state, (low, high) in ends.items() if of[low] == of[high]}


def walk(planned, final):
    """For every n a step: from probabilities of k flags after n prompts to those after n + 1."""
    for n in range(planned):

        def step(before, n=n):
            after = {}
            for k, weight in before.items():
                flag = (final - k) / (planned - n)
                for more, share in ((1, flag), (0, 1 - flag)):
                    if share > 0:
                        after[k + more] = after.get(k + more, 0.0) + weight * share
            return after

        yield n + 1, step


def error_of(planned, final, limit, error, every=1):
    """Probability that the outcome after stopping is not the whole suite's, and the mean number asked."""
    stop, true = settled(planned, limit, error), outcome(final, planned, limit)
    wrong = asked = 0.0
    going = {0: 1.0}
    for n, step in walk(planned, final):
        going = step(going)
        if n % every and n < planned:
            continue
        for k in [k for k in going if (n, k) in stop]:
            weight = going.pop(k)
            asked += weight * n
            wrong += weight * (stop[n, k] != true)
    assert not going
    return wrong, asked


def coverage_miss(planned, final, error):
    """Probability that the true final count is ever left out."""
    missed, going = 0.0, {0: 1.0}
    for n, step in walk(planned, final):
        going = step(going)
        for k in list(going):
            low, high = final_counts(k, n, planned, error)
            if not low <= final <= high:
                missed += going.pop(k)
    return missed


# --- worked by hand ------------------------------------------------------------------


def test_three_prompts_worked_by_hand():
    """N = 3. Mean over the prior of one flag in one: 1/2; of two in two: 3/8; of a run of one in two: 1/8.

    One flag in one: likelihoods of K = 1, 2, 3 are 1/3, 2/3, 1, so the ratios are 3/2, 3/4, 1/2.
    Two flags in two: K = 2, 3 with 1/3, 1, so 9/8 and 3/8. One in two: K = 1, 2 with 1/3, 1/3: 3/8 both.
    """
    assert final_counts(1, 1, 3, 0.6) == FinalCounts(1, 3)  # 3/2 < 1/0.6
    assert final_counts(1, 1, 3, 0.67) == FinalCounts(2, 3)  # 3/2 > 1/0.67
    assert final_counts(2, 2, 3, 0.88) == FinalCounts(2, 3)  # 9/8 < 1/0.88
    assert final_counts(2, 2, 3, 0.89) == FinalCounts(3, 3)  # 9/8 > 1/0.89
    assert final_counts(1, 2, 3, 0.99) == FinalCounts(1, 2)
    assert final_counts(0, 0, 3, 0.99) == FinalCounts(0, 3)


@pytest.mark.parametrize("error", [0.0, 0.01, 0.5, 0.99])
def test_what_cannot_be_reached_is_left_out_with_certainty(error):
    for n in range(14):
        for k in range(n + 1):
            low, high = final_counts(k, n, 13, error)
            assert k <= low <= high <= 13 - (n - k)
            if error == 0:
                assert (low, high) == (k, 13 - (n - k))
    assert final_counts(4, 13, 13, error) == FinalCounts(4, 4)


def test_flags_and_their_absence_mirror_each_other():
    for n, k in ((1, 0), (7, 2), (20, 20), (33, 10)):
        low, high = final_counts(k, n, 40, 0.05)
        assert final_counts(n - k, n, 40, 0.05) == FinalCounts(40 - high, 40 - low)


def test_a_smaller_error_leaves_more_open():
    ends = [final_counts(3, 50, 130, error) for error in (0.2, 0.05, 0.01, 1e-6, 0)]
    assert ends == sorted(ends, key=lambda end: end.high - end.low)
    assert all(b.low <= a.low <= a.high <= b.high for a, b in itertools.pairwise(ends))
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize(("count", "n", "planned"), [(-1, 3, 5), (4, 3, 5), (1, 6, 5), (0, 0, 0)])
def test_counts_that_are_no_part_of_a_suite_are_refused(count, n, planned):
    with pytest.raises(DataError, match=f"got count {count}, n {n}, planned {planned}"):
        final_counts(count, n, planned, 0.01)


@pytest.mark.parametrize("error", [-0.1, 1.0, math.nan])
def test_an_error_that_is_no_probability_is_refused(error):
    with pytest.raises(DataError, match=r"expected an error in \[0, 1\), got"):
        final_counts(1, 2, 3, error)


# --- every order of small suites, in whole numbers -------------------------------------


def ratio(run, planned, final):
    """Prior over posterior in exact fractions; the mean over the prior as a product of urn draws."""
    n, k = len(run), sum(run)
    mean = Fraction(1)
    for i, flag in enumerate(run):
        seen = sum(run[:i])
        mean *= (Fraction(1, 2) + (seen if flag else i - seen)) / (i + 1)
    if not k <= final <= planned - n + k:
        return math.inf
    return mean / Fraction(math.comb(planned - n, final - k), math.comb(planned, final))


@pytest.mark.parametrize("planned", [1, 2, 5, 7])
def test_the_ratio_never_grows_on_average_and_the_counts_are_those_below_the_bound(planned):
    for final in range(planned + 1):
        orders = [
            tuple(int(i in flagged) for i in range(planned))
            for flagged in itertools.combinations(range(planned), final)
        ]
        for n in range(planned + 1):
            mean = sum(ratio(order[:n], planned, final) for order in orders) / len(orders)
            assert mean == 1 if n <= min(final, planned - final) else mean < 1
        for order, n, error in itertools.product(orders, range(planned + 1), (0.05, 0.35, 0.7)):
            run = order[:n]
            ratios = {k: ratio(run, planned, k) for k in range(planned + 1)}
            below = [k for k, value in ratios.items() if value < 1 / Fraction(error)]
            assert final_counts(sum(run), n, planned, error) == FinalCounts(below[0], below[-1])
            assert below == list(range(below[0], below[-1] + 1))


def test_exact_probabilities_of_missing_equal_a_count_of_all_orders():
    planned, final, error = 8, 3, 0.4
    orders = list(itertools.combinations(range(planned), final))

    def missed(flagged):
        run = [int(i in flagged) for i in range(planned)]
        ends = (final_counts(sum(run[:n]), n, planned, error) for n in range(planned + 1))
        return any(not low <= final <= high for low, high in ends)

    share = Fraction(sum(map(missed, orders)), len(orders))
    assert 0 < share <= error
    assert coverage_miss(planned, final, error) == pytest.approx(float(share), rel=1e-12)


# --- what is guaranteed ----------------------------------------------------------------


@pytest.mark.parametrize("planned", [20, 60])
@pytest.mark.parametrize("error", [0.01, 0.1])
def test_the_true_count_is_ever_left_out_with_at_most_the_stated_probability(planned, error):
    misses = [coverage_miss(planned, final, error) for final in range(planned + 1)]
    assert max(misses) <= error
    # A bound that is far too wide would pass as well.
    assert max(misses) > error / 10


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("error", [0.0, 0.01, 0.1])
def test_the_outcome_differs_with_at_most_the_stated_probability_whatever_the_true_count(limit, error):
    planned = 80
    wrong = [error_of(planned, final, limit, error)[0] for final in range(planned + 1)]
    assert max(wrong) <= error
    if error:
        near = max(range(planned + 1), key=wrong.__getitem__)
        # It is most often wrong next to where the outcome changes.
        assert len({outcome(final, planned, limit) for final in (near - 1, near, near + 1)}) > 1
        assert wrong[near] > error / 50


@pytest.mark.parametrize("limit", LIMITS)
def test_simulated_suites_differ_from_their_whole_no_more_often_than_stated(limit):
    """130 prompts, 1000 random orders for each of the true counts around both ends of "cannot tell".

    The tolerance: where the probability of a wrong outcome is the exact one, a count of 1000 exceeds
    its mean by more than five standard deviations (and 5 for the rarest) hardly once in a million.
    """
    planned, error, repetitions = 130, 0.1, 1000
    stop = settled(planned, limit, error)
    of = [outcome(final, planned, limit) for final in range(planned + 1)]
    changes = [final for final in range(1, planned + 1) if of[final] != of[final - 1]]
    assert len(changes) == 2
    rng = np.random.default_rng(5)
    for final in sorted({change + near for change in changes for near in (-2, -1, 0, 1)}):
        flags = rng.permuted(np.tile(np.arange(planned) < final, (repetitions, 1)), axis=1).cumsum(axis=1)
        wrong = asked = 0
        for counts in flags.tolist():
            n, found = next((n, stop[n, k]) for n, k in enumerate(counts, 1) if (n, k) in stop)
            wrong += found != of[final]
            asked += n
        exact, mean = error_of(planned, final, limit, error)
        assert exact <= error
        assert abs(wrong - exact * repetitions) <= 5 + 5 * math.sqrt(repetitions * exact * (1 - exact))
        # The number asked lies in 1 to 130: its standard deviation is at most 65.
        assert abs(asked / repetitions - mean) <= 5 * 65 / math.sqrt(repetitions)


SAVED = {
    # limit: mean number asked of 130 where none, 5 % and half are flagged, looking after every 10.
    0.15: (60, 113, 19),
    0.2: (40, 77, 25),
    0.3: (30, 46, 50),
}


@pytest.mark.parametrize("limit", SAVED)
def test_prompts_saved_of_130_at_one_percent(limit):
    """Simulated: of 130 prompts at δ = 1 %, looked at after every ten answers."""
    planned, every, repetitions = 130, 10, 2000
    stop = settled(planned, limit, 0.01)
    rng = np.random.default_rng(11)
    asked = []
    for rate in (0.0, 0.05, 0.5):
        final = round(rate * planned)
        counts = rng.permuted(np.tile(np.arange(planned) < final, (repetitions, 1)), axis=1).cumsum(axis=1)
        looks = [*range(every, planned, every), planned]
        numbers = [next(n for n in looks if (n, row[n - 1]) in stop) for row in counts.tolist()]
        asked.append(sum(numbers) / repetitions)
        # 2000 repetitions: five standard errors of a number between 10 and 130 are at most 7.
        assert asked[-1] == pytest.approx(error_of(planned, final, limit, 0.01, every)[1], abs=7)
    assert [round(number) for number in asked] == pytest.approx(SAVED[limit], abs=2)


# --- the order ---------------------------------------------------------------------------


def test_the_order_follows_seed_and_name_and_nothing_else():
    ids = [f"p{i}" for i in range(50)]
    order = random_order(ids, 0, "harm")
    assert sorted(order) == sorted(ids)
    assert order == random_order(reversed(ids), 0, "harm")
    assert len({tuple(random_order(ids, seed, name)) for seed in (0, 1) for name in ("harm", "other")}) == 4
    # Recorded, so that no version of safemerge orders otherwise.
    assert order[:4] == ["p29", "p17", "p16", "p28"]


def test_every_place_is_as_likely_as_any_other():
    """Where one prompt of five comes over 2000 seeds: 400 each, with a standard deviation of 18."""
    places = [random_order("abcde", seed).index("a") for seed in range(2000)]
    assert np.bincount(places, minlength=5) == pytest.approx(400, abs=5 * 18)
