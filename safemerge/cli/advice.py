"""What a user should be told of a merge: settings that hardly can be meant, results that will surprise."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from safemerge.core.options import SERVED_RANK

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions
    from safemerge.records import MergeReport


ROUGH = 0.05
"""Relative error of a stored update above which a user is told."""


def option_warnings(options: MergeOptions) -> Iterator[str]:
    """What to say of settings before anything is read."""
    from safemerge.core import methods

    threshold = options.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        which = "no layer" if threshold < 0 else "every layer"
        yield f"threshold {threshold:g}: cosines lie in [0, 1]: {threshold:g} merges {which}"
    if options.coefficients is not None or sum(methods.get(options.method).default_weights) != 1:
        return  # strengths of their own, not shares
    for whose, weight in zip(("task", "safety"), options.weights, strict=True):
        if not 0 <= weight <= 1:
            yield (
                f"--{whose}-weight {weight:g} lies outside [0, 1]: it "
                f"{'reverses' if weight < 0 else 'magnifies'} the {whose} adapter's update in merged layers"
            )


def threshold_warning(report: MergeReport) -> str | None:
    """What to say of a threshold that told no layers apart; None where it did, or was not meant to."""
    cosines = sorted(layer.cosine for layer in report.layers if layer.cosine is not None)
    threshold = report.threshold
    if threshold is None or report.quantile is not None or not cosines or not 0 < threshold <= 1:
        return None
    if report.options.get("count") is not None:
        return None
    below = sum(cosine < threshold for cosine in cosines)
    if 0 < below < len(cosines):
        return None
    return (
        f"threshold {threshold:g} merged {'no layer' if below == 0 else 'every layer'}: the cosines of these "
        f"models lie between {cosines[0]:.3g} and {cosines[-1]:.3g}. Cosines differ from pair to pair; "
        f"--quantile 0.5 merges the half with the lowest: here, a threshold of {median(cosines):.3g}"
    )


def error_warning(report: MergeReport) -> str | None:
    """What to say of an adapter that holds its updates only roughly; None where it does not."""
    worst = max((layer.error or 0 for layer in report.layers), default=0)
    if worst <= ROUGH:
        return None
    return (
        f"at rank {report.rank} up to {100 * worst:.0f} % of a layer's update is lost: a higher --rank keeps "
        "more, and safemerge export writes a full model that keeps all of it"
    )


def rank_warning(report: MergeReport) -> str | None:
    """What to say of an adapter whose rank servers refuse; None where they do not."""
    if report.rank is None or report.rank <= SERVED_RANK:
        return None
    return (
        f"the adapter has rank {report.rank}; vLLM serves up to {SERVED_RANK} unless its --max-lora-rank is "
        f"raised. --rank {SERVED_RANK} stores it at that rank and shows the error"
    )
