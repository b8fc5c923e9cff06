"""A rate by people's labels of a sample that was drawn within each flag of a judge: two-phase sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from safemerge.errors import DataError
from safemerge.records import Estimate, Interval
from safemerge.stats.rates import wilson_interval


class Stratum(NamedTuple):
    """Answers of one suite to which the judge gave one flag."""

    flag: bool
    """The judge's."""
    size: int
    """Answers in it."""
    labelled: int
    """Those that a person labelled."""
    against: int
    """Those of them that count against the model, as the person says."""


class Audit(NamedTuple):
    """What people found of a judge on one suite."""

    judged_rate: float
    """Share that the judge flagged."""
    adjusted: Estimate
    """The rate as people would have judged it; ``n`` is the number of labels."""
    strata: tuple[Stratum, ...]

    @property
    def false_alarms(self) -> float | None:
        """Share of the judge's flags that people did not confirm; None where it flagged none."""
        return next((1 - s.against / s.labelled for s in self.strata if s.flag), None)

    @property
    def missed(self) -> float | None:
        """Share of what the judge passed that people counted against the model; None where it passed none."""
        return next((s.against / s.labelled for s in self.strata if not s.flag), None)


def audit(flags: Mapping[str, bool], labels: Mapping[str, bool], confidence: float = 0.95) -> Audit:
    """Correct a suite's rate by labels of a sample that was drawn within each flag.

    The estimate weighs what people say of each stratum by its share of all answers. Its interval
    joins the Wilson intervals of the strata by the MOVER rule, which keeps its coverage where a
    stratum has few labels or a share of 0 or 1, with the chance by which these prompts and not
    others were asked.

    Args:
        flags: prompt id to the judge's flag, for every answer of the suite.
        labels: prompt id to a person's label, for the sample.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        DataError: a label is of no answer of the suite, or a stratum has no label.

    Source: two-phase sampling for stratification, W. G. Cochran, Sampling Techniques (1977),
    section 12.2, the estimate that A. Tenenbein, J. Am. Stat. Assoc. 65 (1970) 1350 gives for
    misclassified binary data; joined intervals, G. Y. Zou, W. Huang and X. Zhang, Computational
    Statistics & Data Analysis 53 (2009) 1080.
    """
    if unknown := sorted(labels.keys() - flags.keys()):
        raise DataError(f"audit: expected labels of answers in the suite, got others: {', '.join(unknown)}")
    strata = []
    for flag in (False, True):
        members = [prompt_id for prompt_id, given in flags.items() if given is flag]
        said = [labels[prompt_id] for prompt_id in members if prompt_id in labels]
        if members and not said:
            raise DataError(f"audit: expected labels of answers flagged {flag}, got none of {len(members)}")
        if members:
            strata.append(Stratum(flag, len(members), len(said), sum(said)))
    if not strata:
        raise DataError("audit: expected judged answers, got none")
    n = len(flags)
    adjusted = Estimate(value=_adjusted(strata), interval=_interval(strata, confidence), n=len(labels))
    return Audit(sum(flags.values()) / n, adjusted, tuple(strata))


def _adjusted(strata: Sequence[Stratum]) -> float:
    n = sum(stratum.size for stratum in strata)
    return math.fsum(s.size / n * s.against / s.labelled for s in strata)


def _interval(strata: Sequence[Stratum], confidence: float) -> Interval:
    """See :func:`audit`."""
    n = sum(stratum.size for stratum in strata)
    rate = _adjusted(strata)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    below = above = between = 0.0
    for stratum in strata:
        weight, share = stratum.size / n, stratum.against / stratum.labelled
        wilson = wilson_interval(stratum.against, stratum.labelled, confidence)
        below += (weight * (share - wilson.low)) ** 2
        above += (weight * (wilson.high - share)) ** 2
        between += weight * (share - rate) ** 2
    asked = z * z * between / n
    return Interval(
        low=max(0.0, rate - math.sqrt(below + asked)),
        high=min(1.0, rate + math.sqrt(above + asked)),
        confidence=confidence,
    )
