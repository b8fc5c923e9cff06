"""Paired arms: published values, agreement with scipy and statsmodels, size and coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from safemerge.errors import DataError
from safemerge.stats import holm, mcnemar, rate_difference, smallest_significant


def flags(values):
    return {f"p{i}": bool(value) for i, value in enumerate(values)}


def paired(both, first, second, neither):
    """Flags of two arms from the four cells of a paired table."""
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    two = [1] * both + [0] * first + [1] * second + [0] * neither
    return flags(one), flags(two)


# --- differences of rates ------------------------------------------------------


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


# --- McNemar's test ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "p"),
    # Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13 (2013) 91: exact conditional
    # p values of their two examples, airway hyper-responsiveness (table 1) and complete response.
    [((1, 1, 7, 12), 0.0703), ((59, 6, 16, 80), 0.0525)],
)
def test_mcnemar_gives_the_published_p_values(cells, p):
    assert round(mcnemar(*paired(*cells)), 4) == p


@pytest.mark.parametrize("cells", [(0, 0, 0, 9), (3, 5, 5, 0), (3, 0, 8, 1), (10, 40, 12, 200), (0, 1, 0, 0)])
def test_mcnemar_equals_statsmodels_and_scipy(cells):
    both, first, second, neither = cells
    one, two = paired(*cells)
    theirs = statsmodels_mcnemar([[both, first], [second, neither]], exact=True).pvalue
    # Sums of the same binomial terms: only rounding may differ.
    assert mcnemar(one, two) == pytest.approx(theirs, rel=1e-12)
    if n := first + second:
        greater = binomtest(first, n, alternative="greater").pvalue
        assert mcnemar(one, two, "greater") == pytest.approx(greater, rel=1e-12)


def test_mcnemar_of_arms_that_agree_is_one():
    one, two = paired(4, 0, 0, 5)
    assert mcnemar(one, two) == mcnemar(one, two, "greater") == 1


def test_mcnemar_takes_thousands_of_prompts():
    assert mcnemar(*paired(0, 3000, 2000, 0)) == pytest.approx(
        binomtest(2000, 5000).pvalue,
        rel=1e-9,  # scipy adds up terms that are themselves rounded
    )


def test_mcnemar_keeps_its_level():
    rng = np.random.default_rng(2)
    # Both arms flag 20 % of the prompts, and differ on 20 %: any rejection is false.
    draws = rng.multinomial(100, [0.1, 0.1, 0.1, 0.7], size=2000)
    p_values = [mcnemar(*paired(*draw), "greater") for draw in draws]
    # Cautious, so below its level but for three standard errors of 2000 simulations (0.015).
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.065


@pytest.mark.parametrize(
    ("alpha", "tests"), [(0.05, 1), (0.05, 3), (0.01, 1), (0.5, 1), (0.125, 1), (0.9, 1)]
)
def test_the_smallest_sample_that_can_be_significant(alpha, tests):
    n = smallest_significant(alpha, tests)

    def least(prompts):
        return tests * mcnemar(*paired(0, prompts, 0, 0), "greater")

    assert least(n) <= alpha
    assert n == 1 or least(n - 1) > alpha


# --- Holm's correction -----------------------------------------------------------------


def test_holm_gives_the_worked_example():
    # The example of the Wikipedia article on the Holm-Bonferroni method: at 5 %, H4 and H1 are
    # rejected and H3 and H2 are not. Adjusted by hand: 4 · .005, 3 · .01, 2 · .03, and no less than that.
    adjusted = holm({"H1": 0.01, "H2": 0.04, "H3": 0.03, "H4": 0.005})
    assert adjusted == pytest.approx({"H1": 0.03, "H2": 0.06, "H3": 0.06, "H4": 0.02})
    assert list(adjusted) == ["H1", "H2", "H3", "H4"]


def test_holm_equals_statsmodels():
    rng = np.random.default_rng(3)
    for size in (1, 2, 7):
        p_values = rng.random(size) ** 2
        theirs = multipletests(p_values, method="holm")[1]
        ours = holm({str(i): p for i, p in enumerate(p_values)})
        assert list(ours.values()) == pytest.approx(list(theirs), rel=1e-12)
    assert holm({}) == {}


def test_holm_keeps_the_level_over_several_suites():
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(500):
        draws = rng.multinomial(60, [0.1, 0.1, 0.1, 0.7], size=4)
        p_values = {str(i): mcnemar(*paired(*draw), "greater") for i, draw in enumerate(draws)}
        false += min(holm(p_values).values()) <= 0.05
    # At most 0.05 but for three standard errors of 500 simulations (0.03).
    assert false / 500 <= 0.08


# --- wrong input ------------------------------------------------------------------------


@pytest.mark.parametrize("function", [rate_difference, mcnemar])
def test_arms_must_share_their_prompts(function):
    one, two = {f"d{i}": True for i in range(9)}, {"d0": True, "x": False}
    with pytest.raises(DataError, match="unpaired d1, d2, d3, d4, d5 and 4 more"):
        function(one, two)
    with pytest.raises(DataError, match=r"unpaired x$"):
        function({"d0": True}, two)


@pytest.mark.parametrize("function", [rate_difference, mcnemar])
def test_no_prompts_are_refused(function):
    with pytest.raises(DataError, match="got none"):
        function({}, {})
