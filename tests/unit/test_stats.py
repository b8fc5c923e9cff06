"""Intervals against published worked values, and their coverage by simulation."""

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from safemerge import stats
from safemerge.errors import DataError
from safemerge.stats import gain_kept, rate_difference, share_won_back, wilson_interval


def scores(values):
    return {f"d{i}": float(value) for i, value in enumerate(values)}


def flags(values):
    return {f"p{i}": bool(value) for i, value in enumerate(values)}


def paired(both, first, second, neither):
    """Flags of two arms from the four cells of a paired table."""
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    two = [1] * both + [0] * first + [1] * second + [0] * neither
    return flags(one), flags(two)


# --- rates -----------------------------------------------------------------


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


# --- differences of rates ----------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "value", "low", "high"),
    [
        # Altman et al., Statistics with Confidence (2000), table 6.2.
        ((14, 5, 0, 22), 0.122, 0.011, 0.226),
        # Complete response before and after consolidation (Cavo 2012), as worked by
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, ch. 8.
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046),
    ],
)
def test_rate_difference_gives_the_published_limits(cells, value, low, high):
    estimate = rate_difference(*paired(*cells))
    digits = 3 if abs(value) > 0.1 else 4
    got = (estimate.value, estimate.interval.low, estimate.interval.high)
    assert tuple(round(x, digits) for x in got) == (value, low, high)
    assert estimate.n == sum(cells)


def test_rate_difference_changes_sign_with_the_arms():
    one, two = paired(3, 20, 2, 75)
    there, back = rate_difference(one, two), rate_difference(two, one)
    assert (there.value, there.interval.low, there.interval.high) == pytest.approx(
        (-back.value, -back.interval.high, -back.interval.low), abs=1e-15
    )


def test_rate_difference_of_arms_that_always_and_never_comply_keeps_a_width():
    estimate = rate_difference(*paired(0, 40, 0, 0))
    assert estimate.value == 1
    assert estimate.interval.high == 1
    assert 0.8 < estimate.interval.low < 0.95


def test_rate_difference_covers_the_truth():
    rng = np.random.default_rng(5)
    cells = np.array([0.02, 0.28, 0.01, 0.69])
    truth = cells[1] - cells[2]
    intervals = [rate_difference(*paired(*draw)).interval for draw in rng.multinomial(100, cells, size=1000)]
    coverage = np.mean([i.low <= truth <= i.high for i in intervals])
    # 0.95 within three standard errors of 1000 simulations (0.02).
    assert 0.93 <= coverage <= 0.97


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
    monkeypatch.setattr(stats, "_CHUNK_CELLS", 100)
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    pieces = gain(one, two)
    monkeypatch.setattr(stats, "_CHUNK_CELLS", 4_000_000)
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
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
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
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
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


# --- wrong input -------------------------------------------------------------------


@pytest.mark.parametrize("function", [gain, rate_difference])
def test_arms_must_share_their_documents(function):
    one, two = {f"d{i}": 1.0 for i in range(9)}, {"d0": 1.0, "x": 0.0}
    with pytest.raises(DataError, match="unpaired d1, d2, d3, d4, d5 and 4 more"):
        function(one, two)
    with pytest.raises(DataError, match=r"unpaired x$"):
        function({"d0": 1.0}, two)


def test_no_documents_and_one_document_are_refused():
    with pytest.raises(DataError, match="got none"):
        rate_difference({}, {})
    with pytest.raises(DataError, match="at least two documents, got one"):
        gain({"d": 1.0}, {"d": 0.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_must_be_finite(bad):
    with pytest.raises(DataError, match=r"got others for d1$"):
        gain(scores([1, 2, 3]), scores([1, bad, 3]))
