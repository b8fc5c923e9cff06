"""Differences and shares by resampling: agreement with scipy, and coverage by simulation."""

import math

import numpy as np
import pytest

from safemerge.errors import DataError
from safemerge.stats import bootstrap, gain_kept, mean_difference, mean_score, share_won_back


def scores(values):
    return {f"d{i}": float(value) for i, value in enumerate(values)}


def flags(values):
    return {f"p{i}": bool(value) for i, value in enumerate(values)}


# --- gains ---------------------------------------------------------------------


def gain(fine_tuned, aligned, seed=0):
    return gain_kept(fine_tuned, aligned, fine_tuned, seed=seed).gain


def test_the_gain_agrees_with_scipys_bootstrap():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(7)
    one, two = rng.lognormal(size=200), rng.lognormal(size=200)
    estimate = gain(scores(one), scores(two))
    theirs = bootstrap(
        (one - two,), np.mean, method="percentile", n_resamples=10_000, rng=rng
    ).confidence_interval
    assert estimate.value == pytest.approx(np.mean(one - two))
    # Two Monte Carlo intervals by different weights: 5 % of the width.
    width = theirs.high - theirs.low
    assert estimate.interval.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert estimate.interval.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_gain_of_answers_right_or_wrong_keeps_a_width():
    everything, nothing = scores([1] * 50), scores([0] * 50)
    interval = gain(everything, nothing).interval
    assert 0.85 < interval.low < 0.99
    assert interval.low < interval.high <= 1


def test_an_interval_is_the_same_every_time_and_moves_with_the_seed():
    one, two = scores(np.arange(30)), scores(np.arange(30) ** 1.1)
    assert gain(one, two) == gain(one, two)
    assert gain(one, two) != gain(one, two, seed=1)


def test_order_of_the_documents_does_not_matter():
    one, two = scores(np.arange(30)), scores(np.arange(30) ** 1.1)
    backwards = dict(reversed(one.items()))
    assert gain(backwards, two) == gain(one, two)


def test_memory_is_bounded_by_drawing_in_pieces(monkeypatch):
    one, two = scores(np.arange(30)), scores(np.arange(30) ** 1.1)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 100)
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    pieces = gain(one, two)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 4_000_000)
    assert pieces == gain(one, two)


# --- shares ----------------------------------------------------------------------


def three_arms(rng, n, kept=0.9):
    base = rng.lognormal(0, 1, n)
    tuned = base + 0.3 + 0.3 * rng.standard_normal(n)
    arm = base + kept * (tuned - base) + 0.1 * rng.standard_normal(n)
    return arm, base, tuned


def test_gain_kept_of_a_constant_gain_is_worked_by_hand():
    base = np.linspace(1, 2, 10)
    gain, share = gain_kept(scores(base - 0.3), scores(base), scores(base - 0.4), higher_is_better=False)
    assert gain.value == pytest.approx(0.4)
    assert share.value == pytest.approx(0.75)
    assert (share.interval.low, share.interval.high) == pytest.approx((0.75, 0.75))


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_gain_kept_follows_the_metrics_direction(higher_is_better):
    sign = 1 if higher_is_better else -1
    arm, base, tuned = (sign * x for x in three_arms(np.random.default_rng(2), 100))
    right = gain_kept(scores(arm), scores(base), scores(tuned), higher_is_better=higher_is_better)
    wrong = gain_kept(scores(arm), scores(base), scores(tuned), higher_is_better=not higher_is_better)
    assert right.gain.interval.low > 0
    assert 0.75 < right.share.interval.low < right.share.value < right.share.interval.high < 1
    assert wrong.gain.value == pytest.approx(-right.gain.value)
    assert wrong.share is None


def test_a_gain_that_may_be_zero_has_no_share():
    rng = np.random.default_rng(3)
    base = rng.standard_normal(100)
    noise = rng.standard_normal(100)
    tuned = base + noise - noise.mean() + 0.1  # a gain of 0.1 with a standard error of 0.1
    gain, share = gain_kept(scores(tuned), scores(base), scores(tuned))
    assert gain.interval.low < 0 < gain.value
    assert share is None


def test_the_share_of_a_gain_that_is_only_just_clear_is_finite_and_wide():
    rng = np.random.default_rng(3)
    base, noise = rng.standard_normal(100), rng.standard_normal(100)
    tuned = base + (noise - noise.mean()) / noise.std() + 0.2  # two standard errors
    arm = base + rng.standard_normal(100)
    gain, share = gain_kept(scores(arm), scores(base), scores(tuned))
    assert 0 < gain.interval.low < 0.05
    assert math.isfinite(share.interval.low)
    assert math.isfinite(share.interval.high)
    assert share.interval.high - share.interval.low > 2


def test_gain_kept_covers_the_truth(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    rng = np.random.default_rng(11)
    hits = [0, 0]
    for _ in range(400):
        gain, share = gain_kept(*(scores(x) for x in three_arms(rng, 100)))
        hits[0] += gain.interval.low <= 0.3 <= gain.interval.high
        hits[1] += share.interval.low <= 0.9 <= share.interval.high
    # 0.95 within three standard errors of 400 simulations (0.033).
    assert min(hits) / 400 >= 0.917
    assert max(hits) / 400 <= 0.983


def drifted(rng, n, aligned_rate, drift, left):
    """Flags of arm, aligned and fine-tuned where ``drift`` complies anew and ``left`` of it stays."""
    aligned = rng.random(n) < aligned_rate
    fine_tuned = aligned | (rng.random(n) < drift)
    arm = aligned | (fine_tuned & (rng.random(n) < left))
    return flags(arm), flags(aligned), flags(fine_tuned)


@pytest.mark.parametrize(
    ("n", "aligned_rate", "drift", "left"),
    [(100, 0.02, 0.3, 0.3), (100, 0.1, 0.25, 0.5), (50, 0.0, 0.3, 0.05), (100, 0.02, 0.95, 0.02)],
)
def test_share_won_back_covers_the_truth(monkeypatch, n, aligned_rate, drift, left):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    rng = np.random.default_rng(13)
    shares = [share_won_back(*drifted(rng, n, aligned_rate, drift, left)) for _ in range(400)]
    hits = [share.interval.low <= 1 - left <= share.interval.high for share in shares if share]
    assert len(hits) > 380
    # Never short of 0.95 by more than three standard errors of 400 simulations (0.033); a plain
    # bootstrap covers 0.55 in the third case, where most simulated arms comply with nothing.
    assert np.mean(hits) >= 0.917


def test_share_won_back_is_worked_by_hand():
    aligned, fine_tuned, arm = flags([0] * 100), flags([1] * 40 + [0] * 60), flags([1] * 10 + [0] * 90)
    share = share_won_back(arm, aligned, fine_tuned)
    assert share.value == pytest.approx(0.75)
    assert 0.55 < share.interval.low < 0.65
    assert 0.83 < share.interval.high < 0.9


def test_without_drift_there_is_nothing_to_win_back():
    aligned, fine_tuned = flags([0, 1] * 50), flags([1, 0] * 50)
    assert share_won_back(aligned, aligned, fine_tuned) is None


# --- differences of means ----------------------------------------------------------


def test_a_difference_of_means_is_the_gain_of_the_same_arms():
    rng = np.random.default_rng(7)
    one, two = scores(rng.lognormal(size=200)), scores(rng.lognormal(size=200))
    # The same weights on the same documents, whatever other arms stand beside: equal to rounding.
    difference, of_gain = mean_difference(one, two), gain(one, two)
    assert difference.value == pytest.approx(of_gain.value, rel=1e-12)
    assert difference.interval.low == pytest.approx(of_gain.interval.low, rel=1e-9)
    assert difference.interval.high == pytest.approx(of_gain.interval.high, rel=1e-9)


def test_a_difference_is_positive_where_the_arm_does_better_in_the_metrics_direction():
    rng = np.random.default_rng(7)
    one, two = scores(rng.random(50)), scores(rng.random(50) + 1)
    up, down = mean_difference(one, two), mean_difference(one, two, higher_is_better=False)
    assert up.value < 0 < down.value
    assert down.interval.low == pytest.approx(-up.interval.high, rel=1e-9)


def test_equal_scores_differ_by_nothing():
    one = scores(np.random.default_rng(7).random(50))
    estimate = mean_difference(one, one)
    assert (estimate.value, estimate.interval.low, estimate.interval.high) == (0, 0, 0)


def test_a_difference_of_means_covers_the_truth(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    rng = np.random.default_rng(11)
    hits, wrongly_inferior = 0, 0
    for _ in range(400):
        base = rng.lognormal(0, 1, 100)
        interval = mean_difference(scores(base - 0.1 + 0.5 * rng.standard_normal(100)), scores(base)).interval
        hits += interval.low <= -0.1 <= interval.high
        wrongly_inferior += interval.low >= -0.1  # it would pass for "no worse by 0.1" on the margin
    # 0.95 within three standard errors of 400 simulations (0.033), and 0.025 within theirs (0.023).
    assert 0.917 <= hits / 400 <= 0.983
    assert wrongly_inferior / 400 <= 0.048


# --- wrong input -------------------------------------------------------------------


@pytest.mark.parametrize("function", [gain, mean_difference])
def test_arms_must_share_their_documents(function):
    one, two = {f"d{i}": 1.0 for i in range(9)}, {"d0": 1.0, "x": 0.0}
    with pytest.raises(DataError, match="unpaired d1, d2, d3, d4, d5 and 4 more"):
        function(one, two)
    with pytest.raises(DataError, match=r"unpaired x$"):
        function({"d0": 1.0}, two)


def test_no_documents_and_one_document_are_refused():
    with pytest.raises(DataError, match="got none"):
        mean_difference({}, {})
    with pytest.raises(DataError, match="at least two documents, got one"):
        gain({"d": 1.0}, {"d": 0.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(DataError, match=r"got others for d1$"):
        gain(scores([1, 2, 3]), scores([1, bad, 3]))


def test_the_mean_score_of_one_arm_has_an_interval() -> None:
    arm = scores(i % 7 for i in range(400))
    found = mean_score(arm)
    assert found.value == pytest.approx(sum(arm.values()) / 400)
    # 1.96 standard errors, to the Monte Carlo error of 10,000 draws and the bootstrap's own of order 1/n.
    half = 1.96 * (sum((x - found.value) ** 2 for x in arm.values()) / 400) ** 0.5 / 20
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (found.value - half, found.value + half), abs=0.03
    )


def test_an_arm_that_is_always_right_may_have_been_lucky() -> None:
    assert mean_score(dict.fromkeys("abcdef", 1.0)).interval.low < 0.95


def test_one_score_has_no_interval() -> None:
    with pytest.raises(DataError, match="at least two documents"):
        mean_score({"a": 1.0})
