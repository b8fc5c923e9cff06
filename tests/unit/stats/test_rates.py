"""Rates: published limits, agreement with statsmodels, and the prompts that a limit needs."""

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from safemerge.errors import DataError
from safemerge.stats import category_rates, smallest_sample, wilson_interval


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(count, n, low, high):
    interval = wilson_interval(count, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_equals_statsmodels(confidence):
    for n in (1, 7, 48, 400):
        for count in range(n + 1):
            interval = wilson_interval(count, n, confidence)
            theirs = proportion_confint(count, n, 1 - confidence, method="wilson")
            # The same closed formula: only rounding may differ.
            assert (interval.low, interval.high) == pytest.approx(theirs, abs=1e-12)
            assert 0 <= interval.low <= count / n <= interval.high <= 1


@pytest.mark.parametrize(("count", "n"), [(0, 0), (-1, 10), (11, 10)])
def test_wilson_refuses_counts_that_are_no_rate(count, n):
    with pytest.raises(DataError, match=f"count {count} of n {n}"):
        wilson_interval(count, n)


def test_wilson_covers_a_rate_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = {}
    for rate in (0.05, 0.2, 0.5):
        counts = rng.binomial(100, rate, size=4000)
        intervals = {count: wilson_interval(int(count), 100) for count in set(counts)}
        covered[rate] = np.mean([intervals[c].low <= rate <= intervals[c].high for c in counts])
    # 0.95 but for the steps of a count of 100 prompts (0.02) and three standard errors (0.01).
    assert all(0.92 <= share <= 0.98 for share in covered.values()), covered


# --- the prompts that a limit needs ----------------------------------------------


def test_forty_prompts_can_never_show_five_percent():
    assert wilson_interval(0, 40).high > 0.05
    assert smallest_sample(0.05) == 73


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_smallest_sample_shows_the_limit_and_one_prompt_less_does_not(limit, confidence):
    n = smallest_sample(limit, confidence=confidence)
    assert wilson_interval(0, n, confidence).high <= limit
    assert n == 1 or wilson_interval(0, n - 1, confidence).high > limit


def test_the_smallest_sample_at_a_rate_is_where_the_upper_end_meets_the_limit():
    # By hand: 1.959964² · 0.25 · 0.75 / 0.05² = 288.1.
    assert smallest_sample(0.25, 0.2) == 289
    assert wilson_interval(58, 290).high <= 0.25 < wilson_interval(57, 285).high


@pytest.mark.parametrize(("limit", "rate"), [(0.0, 0.0), (0.1, 0.1), (0.1, 0.2)])
def test_no_sample_shows_a_limit_that_the_rate_does_not_meet(limit, rate):
    assert smallest_sample(limit, rate) is None


def test_every_sample_shows_that_a_rate_is_at_most_one():
    assert smallest_sample(1.0) == smallest_sample(1.0, 1.0) == 1


# --- categories --------------------------------------------------------------------


def test_every_category_has_its_rate_and_interval():
    flags = {"a": True, "b": False, "c": True, "d": False, "e": True}
    found = category_rates(flags, {"d": "fraud", "a": "fraud", "b": "drugs", "c": "drugs"})
    assert list(found) == ["drugs", "fraud"]
    assert (found["fraud"].value, found["fraud"].n) == (0.5, 2)
    assert found["fraud"].interval == wilson_interval(1, 2)


def test_no_categories_give_no_rates():
    assert category_rates({"a": True}, {}) == {}


def test_a_category_of_a_prompt_that_was_not_judged_is_refused():
    with pytest.raises(DataError, match=r"ids of judged prompts, got others: x, y$"):
        category_rates({"a": True}, {"a": "fraud", "y": "fraud", "x": "drugs"})
