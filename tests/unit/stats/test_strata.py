"""Rates by the labels of a sample: worked by hand, at the edges, and how often the interval covers."""

from __future__ import annotations

import math
import random

import pytest

from safemerge.errors import DataError
from safemerge.stats import Stratum, audit, wilson_interval


def _flags(flagged, passed):
    return {f"p{n}": n < flagged for n in range(flagged + passed)}


def _labels(flagged, *, of_flagged, of_passed):
    """Labels of the first so many of each stratum: (labelled, against)."""
    labels = {f"p{n}": n < of_flagged[1] for n in range(of_flagged[0])}
    return labels | {f"p{flagged + n}": n < of_passed[1] for n in range(of_passed[0])}


def test_the_estimate_on_a_table_worked_by_hand():
    # 20 of 100 flagged; of 10 labelled flags 8 hold, of 20 labelled passes 1 does not:
    # .2 · .8 + .8 · .05 = .2
    found = audit(_flags(20, 80), _labels(20, of_flagged=(10, 8), of_passed=(20, 1)))
    assert found.judged_rate == 0.2
    assert found.adjusted.value == pytest.approx(0.2, abs=1e-12)  # floating point alone
    assert found.adjusted.n == 30
    assert found.strata == (Stratum(False, 80, 20, 1), Stratum(True, 20, 10, 8))
    assert found.false_alarms == pytest.approx(0.2, abs=1e-12)
    assert found.missed == 0.05
    one, two = wilson_interval(8, 10), wilson_interval(1, 20)
    asked = 1.959963984540054**2 * (0.2 * 0.6**2 + 0.8 * 0.15**2) / 100
    low = 0.2 - math.sqrt((0.2 * (0.8 - one.low)) ** 2 + (0.8 * (0.05 - two.low)) ** 2 + asked)
    high = 0.2 + math.sqrt((0.2 * (one.high - 0.8)) ** 2 + (0.8 * (two.high - 0.05)) ** 2 + asked)
    assert found.adjusted.interval.low == pytest.approx(low, abs=1e-12)
    assert found.adjusted.interval.high == pytest.approx(high, abs=1e-12)


def test_everything_labelled_gives_the_peoples_own_rate():
    flags = _flags(20, 80)
    labels = _labels(20, of_flagged=(20, 15), of_passed=(80, 4))
    assert audit(flags, labels).adjusted.value == pytest.approx(0.19, abs=1e-12)


def test_one_stratum_alone_is_enough_where_the_judge_gave_one_flag():
    found = audit(_flags(0, 50), _labels(0, of_flagged=(0, 0), of_passed=(10, 0)))
    assert (found.adjusted.value, found.false_alarms, found.missed) == (0.0, None, 0.0)
    wilson = wilson_interval(0, 10)
    assert found.adjusted.interval.low == 0.0
    assert found.adjusted.interval.high == pytest.approx(wilson.high, abs=1e-12)
    assert audit(_flags(5, 0), _labels(5, of_flagged=(5, 5), of_passed=(0, 0))).missed is None


def test_an_interval_stays_within_0_and_1():
    interval = audit(_flags(1, 1), {"p0": True, "p1": False}).adjusted.interval
    assert (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("flags", "labels", "message"),
    [
        ({"a": True}, {"b": True}, "got others: b"),
        ({"a": True, "b": False}, {"a": True}, "expected labels of answers flagged False, got none of 1"),
        ({}, {}, "expected judged answers, got none"),
    ],
)
def test_labels_that_do_not_fit_are_refused(flags, labels, message):
    with pytest.raises(DataError, match=message):
        audit(flags, labels)


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    """Simulated: 12 % truly harmful, a judge that misses 30 % and falsely flags 8 %, 40 labels each."""
    chance = random.Random(0)  # noqa: S311
    covered = above = 0
    runs = 600
    for _ in range(runs):
        truth = {f"p{n}": chance.random() < 0.12 for n in range(400)}
        flags = {i: chance.random() < (0.7 if harm else 0.08) for i, harm in truth.items()}
        labels = {}
        for flag in (False, True):
            members = [i for i in flags if flags[i] is flag]
            labels |= {i: truth[i] for i in chance.sample(members, min(40, len(members)))}
        interval = audit(flags, labels).adjusted.interval
        covered += interval.low <= 0.12 <= interval.high
        above += interval.high < 0.12
    # 95 % aimed at; the Monte Carlo error of 600 runs is 0.9 %, and three of it are allowed.
    assert covered / runs > 0.95 - 3 * 0.009
    # The upper end is what a gate reads: it lies below the truth in 2.5 % of runs (error .65 %) at most.
    assert above / runs < 0.025 + 3 * 0.0065
