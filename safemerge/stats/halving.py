"""Successive halving of candidates by paired flags: who goes on to more prompts, and who is best.

The order of candidates, in every round and for the choice, is one: those that keep the limits as they
stand come first, then least harm, least over-refusal, most utility, fewest layers merged, and the name.
A round drops a candidate for one of three stated reasons, of which the first alone is certain:

1. it misses a limit whatever the prompts still to be asked would show, or is shown to miss one of utility;
2. an exact one-sided McNemar test finds that it does more harm than the round's best which keeps the limits
   as it stands, on the same prompts, at a level that the round's candidates share by Bonferroni's correction;
3. it ranks behind the share of candidates that the round lets go on.

By the second, a round drops the candidate that truly does least harm with at most the level's probability,
whichever other the flags put first: there are only so many others, and the correction counts them all. The
third reason proves nothing: it is what buys the saving, and says which difference was seen, how surely.

Source: K. Jamieson and A. Talwalkar, AISTATS 2016 (successive halving); O. Maron and A. Moore, Artificial
Intelligence Review 11 (1997) 193 (racing).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from safemerge.errors import DataError
from safemerge.reports.tuning import Fate
from safemerge.stats.paired import mcnemar, rate_difference

SLACK = 1e-9
"""Shares of whole numbers may land just above one in floating point."""


class Standing(NamedTuple):
    """What is known of a candidate so far."""

    harmful: Mapping[str, bool]
    """Harmful prompts asked, by id, to flag."""
    refused: Mapping[str, Mapping[str, bool]]
    """Over-refusal suite to the prompts asked, by id, to flag."""
    utility: float = 0.0
    """Larger is better."""
    layers: int = 0
    """Layers merged."""
    inferior: str | None = None
    """Why its utility misses a limit; None where it does not."""
    unsure: bool = False
    """Whether documents that are still to be scored may mend that."""


class Limits(NamedTuple):
    """Over-refusal that a choice may show."""

    rates: Mapping[str, float]
    """Suite to its largest rate."""
    sizes: Mapping[str, int]
    """Suite to the number of its prompts when all are asked."""


class Ending(NamedTuple):
    """What became of a candidate, and why."""

    fate: Fate
    reason: str


class Round(NamedTuple):
    """How a round ended."""

    kept: tuple[str, ...]
    """Those that go on, the best first."""
    dropped: dict[str, Ending]


def ranked(standings: Mapping[str, Standing], limits: Limits) -> list[str]:
    """Names, the best first; candidates are compared on the same prompts.

    Raises:
        DataError: they were asked different prompts.
    """
    _check_same_prompts(standings)

    def place(name: str) -> tuple[bool, int, int, float, int, str]:
        it = standings[name]
        refusals = sum(sum(flags.values()) for flags in it.refused.values())
        unfit = missed(it, limits) is not None
        return unfit, sum(it.harmful.values()), refusals, -it.utility, it.layers, name

    return sorted(standings, key=place)


def missed(it: Standing, limits: Limits) -> str | None:
    """The limits that a candidate misses as it stands, in words; None where it keeps them."""
    found = [it.inferior] if it.inferior else []
    for suite, flags in it.refused.items():
        rate = sum(flags.values()) / len(flags) if flags else 0.0
        if suite in limits.rates and rate > limits.rates[suite]:
            found.append(
                f"over-refusal {100 * rate:.1f} % of {len(flags)} prompts on {suite}: "
                f"must be at most {100 * limits.rates[suite]:g} %"
            )
    return "; ".join(found) or None


def ruled_out(it: Standing, limits: Limits) -> str | None:
    """The limits that a candidate misses whatever is still asked, in words; None where it may keep them."""
    found = [it.inferior] if it.inferior and not it.unsure else []
    for suite, flags in it.refused.items():
        count, size = sum(flags.values()), limits.sizes[suite]
        if suite in limits.rates and count / size > limits.rates[suite]:
            asked = "" if len(flags) == size else f", of which {len(flags)} were asked"
            found.append(
                f"over-refusal on {suite}: {count} of {size} prompts{asked}, "
                f"must be at most {100 * limits.rates[suite]:g} %"
            )
    return "; ".join(found) or None


def halve(standings: Mapping[str, Standing], limits: Limits, keep: float, alpha: float) -> Round:
    """End a round: drop who cannot be chosen, who is beaten, and who ranks too low.

    Args:
        standings: The round's candidates by name, asked the same prompts.
        limits: What a choice must keep.
        keep: Largest share of them that goes on, in (0, 1]; rounded up.
        alpha: Level of the paired tests, in (0, 1).

    Returns:
        Every candidate in one of its two halves; none is kept only where all are ruled out.

    Raises:
        DataError: they were asked different prompts.
    """
    order = ranked(standings, limits)
    dropped = {
        name: Ending(Fate.MISSED, reason) for name in order if (reason := ruled_out(standings[name], limits))
    }
    dropped |= _beaten(standings, [name for name in order if name not in dropped], limits, alpha)
    left = [name for name in order if name not in dropped]
    going_on = most_kept(keep, len(standings))
    for name in left[going_on:]:
        seen = _seen(standings[name], standings[left[0]])
        misses = missed(standings[name], limits)
        so_far = f"; so far {misses}" if misses else ""
        reason = (
            f"ranked {order.index(name) + 1} of {len(order)}, of which {going_on} go on "
            f"(against {left[0]}: {seen}{so_far})"
        )
        dropped[name] = Ending(Fate.OUTRANKED, reason)
    return Round(tuple(left[:going_on]), dropped)


def most_kept(keep: float, candidates: int) -> int:
    """How many of a round's candidates go on at most.

    >>> most_kept(0.4, 12), most_kept(0.4, 5), most_kept(0.1, 3)
    (5, 2, 1)
    """
    return max(1, math.ceil(keep * candidates - SLACK))


def choose(standings: Mapping[str, Standing], limits: Limits) -> tuple[str | None, dict[str, Ending]]:
    """The best of those that keep every limit on all prompts, and what became of each.

    Args:
        standings: Those that were asked every prompt.
        limits: What a choice must keep.

    Returns:
        The name, None where none keeps the limits; and every candidate's fate.

    Raises:
        DataError: they were asked different prompts.
    """
    fates: dict[str, Ending] = {}
    chosen: str | None = None
    for name in ranked(standings, limits):
        it = standings[name]
        if reason := missed(it, limits):
            fates[name] = Ending(Fate.MISSED, reason)
        elif chosen is None:
            chosen = name
            fates[name] = Ending(Fate.CHOSEN, "the least harm of those that keep every limit")
        else:
            reason = f"keeps every limit; {chosen} ranks first (against it: {_seen(it, standings[chosen])})"
            fates[name] = Ending(Fate.KEPT_LIMITS, reason)
    return chosen, fates


def _beaten(
    standings: Mapping[str, Standing], order: Collection[str], limits: Limits, alpha: float
) -> dict[str, Ending]:
    best = next((name for name in order if missed(standings[name], limits) is None), None)
    if best is None or not standings[best].harmful:
        return {}
    leader = standings[best]
    raw = {
        name: mcnemar(standings[name].harmful, leader.harmful, "greater") for name in order if name != best
    }
    # Not Holm's: the best is picked by the same flags, and only a bound over all pairs of one stands that.
    return {
        name: Ending(
            Fate.BEATEN,
            f"more harm than {best}: {_seen(standings[name], leader)}; exact McNemar test, "
            f"p = {p:.2g} (times {len(raw)} comparisons)",
        )
        for name, p in raw.items()
        if len(raw) * p <= alpha
    }


def _seen(it: Standing, other: Standing) -> str:
    """By how much a candidate does more harm than another, on the same prompts."""
    if not it.harmful:
        return "no prompt asked"
    found = rate_difference(it.harmful, other.harmful)
    low, high = found.interval.low, found.interval.high
    return (
        f"harmful rate {100 * found.value:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}) "
        f"on {found.n} prompts"
    )


def _check_same_prompts(standings: Mapping[str, Standing]) -> None:
    asked = {
        name: (it.harmful.keys(), {suite: flags.keys() for suite, flags in it.refused.items()})
        for name, it in standings.items()
    }
    first = next(iter(asked.values()), None)
    if odd := sorted(name for name, prompts in asked.items() if prompts != first):
        raise DataError(
            f"candidates: expected all to be asked the same prompts as {next(iter(asked))}, "
            f"got others for {', '.join(odd)}"
        )
