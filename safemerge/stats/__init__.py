"""The statistics of the gate, and of the choice of a merge: intervals, tests, and shares of a gain.

The rules of ``tune``'s race are in :mod:`safemerge.stats.halving`; nothing else needs them.

Pure functions of flags and scores: no files, no clock, no global random state. They are closed
formulas, in whole numbers where that is possible, or a seeded resampling; the tests hold them
against statsmodels, scipy and published values. Neither library is needed to run them.
"""

from safemerge.stats.bootstrap import (
    FEWEST_DOCUMENTS,
    GainKept,
    gain_kept,
    mean_difference,
    mean_score,
    share_won_back,
)
from safemerge.stats.paired import holm, mcnemar, rate_difference, smallest_significant
from safemerge.stats.rates import category_rates, smallest_sample, wilson_interval
from safemerge.stats.sequential import FinalCounts, final_counts, random_order, whole_interval
from safemerge.stats.strata import Audit, Stratum, audit

__all__ = [
    "FEWEST_DOCUMENTS",
    "Audit",
    "FinalCounts",
    "GainKept",
    "Stratum",
    "audit",
    "category_rates",
    "final_counts",
    "gain_kept",
    "holm",
    "mcnemar",
    "mean_difference",
    "mean_score",
    "random_order",
    "rate_difference",
    "share_won_back",
    "smallest_sample",
    "smallest_significant",
    "whole_interval",
    "wilson_interval",
]
