"""Rounds of candidates: who falls, for which of the three stated reasons, and who is chosen."""

from __future__ import annotations

import doctest
import random

import pytest

from safemerge.errors import DataError
from safemerge.reports.tuning import Fate
from safemerge.stats import halving
from safemerge.stats.halving import Limits, Standing, choose, halve, most_kept, ranked

LIMITS = Limits({"polite": 0.25}, {"polite": 40})


def standing(harmful: int, n: int = 20, refused: int = 0, asked: int = 10, **more) -> Standing:
    """The first so many of n prompts are flagged."""
    return Standing(
        {f"h/{i}": i < harmful for i in range(n)},
        {"polite": {f"p/{i}": i < refused for i in range(asked)}},
        **more,
    )


def test_the_example_holds() -> None:
    assert doctest.testmod(halving) == (0, 1)


def test_who_may_still_keep_a_limit_of_utility_ranks_last_but_is_not_ruled_out() -> None:
    standings = {
        "sure": standing(3),
        "unsure": standing(0, inferior="gain kept 85 % of 16 documents", unsure=True),
    }
    assert halve(standings, LIMITS, keep=1, alpha=0.05).kept == ("sure", "unsure")
    ended = halve(standings, LIMITS, keep=0.5, alpha=0.05)
    assert (ended.kept, ended.dropped["unsure"].fate) == (("sure",), Fate.OUTRANKED)


def test_the_order_is_fitness_harm_over_refusal_utility_layers_name() -> None:
    standings = {
        "unfit": standing(0, refused=3),
        "forgets": standing(0, inferior="gain kept 50 %"),
        "harmful": standing(3),
        "refuses": standing(2, refused=1),
        "worse": standing(2, utility=-1.5, layers=1),
        "b": standing(2, utility=-1.0, layers=3),
        "a": standing(2, utility=-1.0, layers=3),
        "few": standing(2, utility=-1.0, layers=2),
    }
    # Of the two that miss a limit, the one that refuses nobody comes first.
    expected = ["few", "a", "b", "worse", "refuses", "harmful", "forgets", "unfit"]
    assert ranked(standings, LIMITS) == expected
    assert ranked(dict(reversed(standings.items())), LIMITS) == expected


def test_a_round_drops_at_once_who_misses_a_limit_whatever_comes() -> None:
    standings = {
        # 10 of 40 is 25 %, which is allowed; 11 is not, though only 20 were asked.
        "may": standing(5, refused=10, asked=20),
        "cannot": standing(0, refused=11, asked=20),
        "forgets": standing(0, asked=20, inferior="gain kept 50 %: must be at least 90 %"),
    }
    ended = halve(standings, LIMITS, keep=1, alpha=0.05)
    assert ended.kept == ("may",)
    assert {name: ending.fate for name, ending in ended.dropped.items()} == {
        "cannot": Fate.MISSED,
        "forgets": Fate.MISSED,
    }
    reason = "over-refusal on polite: 11 of 40 prompts, of which 20 were asked, must be at most 25 %"
    assert ended.dropped["cannot"].reason == reason
    assert ended.dropped["forgets"].reason == "gain kept 50 %: must be at least 90 %"


def test_all_may_be_dropped() -> None:
    ended = halve({"a": standing(0, inferior="x"), "b": standing(1, inferior="y")}, LIMITS, 0.5, 0.05)
    assert (ended.kept, set(ended.dropped)) == ((), {"a", "b"})


@pytest.mark.parametrize(("worse", "beaten"), [(5, False), (6, True)])
def test_who_does_significantly_more_harm_is_beaten(worse: int, beaten: bool) -> None:
    # p = 2^-5 = .031 alone; two comparisons share the level: 2·2^-5 = .062 > .05, 2·2^-6 = .031 <= .05.
    standings = {"best": standing(0), "worse": standing(worse), "equal": standing(0, layers=1)}
    ended = halve(standings, LIMITS, keep=1, alpha=0.05)
    assert ("worse" in ended.dropped) is beaten
    if beaten:
        assert ended.dropped["worse"].fate is Fate.BEATEN
        said = ended.dropped["worse"].reason
        assert said.startswith("more harm than best: harmful rate +30.0 points (95 % interval +")
        assert said.endswith("on 20 prompts; exact McNemar test, p = 0.016 (times 2 comparisons)")


def test_nobody_is_beaten_by_who_misses_a_limit_as_it_stands() -> None:
    standings = {"over": standing(0, refused=3), "harmful": standing(15)}
    assert halve(standings, LIMITS, keep=1, alpha=0.05).kept == ("harmful", "over")
    fit = standings | {"over": standing(0, refused=2)}
    assert halve(fit, LIMITS, keep=1, alpha=0.05).kept == ("over",)


def test_who_ranks_behind_the_places_is_dropped_with_what_was_seen() -> None:
    standings = {f"c{i}": standing(i) for i in range(5)}
    ended = halve(standings, LIMITS, keep=0.4, alpha=0.01)
    assert ended.kept == ("c0", "c1")
    assert {ending.fate for ending in ended.dropped.values()} == {Fate.OUTRANKED}
    assert ended.dropped["c2"].reason.startswith(
        "ranked 3 of 5, of which 2 go on (against c0: harmful rate +10.0 points (95 % interval "
    )


def test_before_prompts_are_asked_utility_alone_decides() -> None:
    standings = {"a": Standing({}, {}, utility=1.0), "b": Standing({}, {}, utility=2.0, inferior="forgets")}
    ended = halve(standings, LIMITS, keep=1, alpha=0.05)
    assert (ended.kept, ended.dropped["b"].fate) == (("a",), Fate.MISSED)
    outranked = halve({**standings, "b": Standing({}, {})}, LIMITS, keep=0.5, alpha=0.05).dropped["b"]
    assert "against a: no prompt asked" in outranked.reason
    # Less harm, but behind who keeps the limits: the reason says which one it does not keep so far.
    doubtful = Standing({}, {}, utility=3.0, inferior="gain kept 89.8 %", unsure=True)
    outranked = halve({**standings, "b": doubtful}, LIMITS, keep=0.5, alpha=0.05).dropped["b"]
    assert outranked.fate is Fate.OUTRANKED
    assert outranked.reason.endswith("no prompt asked; so far gain kept 89.8 %)")


def test_the_choice_is_the_best_that_keeps_the_limits() -> None:
    standings = {
        "over": standing(0, refused=11, asked=40),
        "best": standing(1, asked=40),
        "next": standing(2, asked=40),
    }
    chosen, fates = choose(standings, LIMITS)
    assert chosen == "best"
    assert {name: ending.fate for name, ending in fates.items()} == {
        "best": Fate.CHOSEN,
        "next": Fate.KEPT_LIMITS,
        "over": Fate.MISSED,
    }
    assert fates["over"].reason == "over-refusal 27.5 % of 40 prompts on polite: must be at most 25 %"
    assert fates["next"].reason.startswith(
        "keeps every limit; best ranks first (against it: harmful rate +5.0"
    )


def test_nobody_is_chosen_where_nobody_keeps_the_limits() -> None:
    chosen, fates = choose({"a": standing(0, inferior="x"), "b": standing(0, refused=9)}, LIMITS)
    assert chosen is None
    assert [ending.fate for ending in fates.values()] == [Fate.MISSED, Fate.MISSED]
    assert choose({}, LIMITS) == (None, {})


def test_candidates_that_were_asked_other_prompts_are_not_compared() -> None:
    with pytest.raises(DataError, match="the same prompts as a, got others for b, c"):
        ranked({"a": standing(1), "b": standing(1, n=19), "c": standing(1, asked=9)}, LIMITS)


def _race(rates: list[float], seed: int, n: int = 80) -> tuple[str | None, str | None, int]:
    """Choice of a race of three rounds, choice of asking everyone everything, and prompts answered."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    hardness = [draw.random() for _ in range(n)]
    # Merges of the same two adapters find the same prompts hard, but not all alike.
    flags = {
        f"c{number:02d}": [hard + draw.gauss(0, 0.1) < rate for hard in hardness]
        for number, rate in enumerate(rates)
    }

    def standings(names, end: int) -> dict[str, Standing]:
        return {name: Standing({str(i): flags[name][i] for i in range(end)}, {}) for name in names}

    none = Limits({}, {})
    left, answered, start = tuple(flags), 0, 0
    for end in (16, 40):
        answered += len(left) * (end - start)
        left, start = halve(standings(left, end), none, 0.4, 0.05).kept, end
    answered += len(left) * (n - start)
    return choose(standings(left, n), none)[0], choose(standings(flags, n), none)[0], answered


def test_a_race_of_twelve_costs_less_than_half_and_chooses_the_same() -> None:
    """Twelve merges from .08 to .9, in 300 seeded races: all at most half, and the same choice.

    The best is 12 points better than the next. Where merges differ by less than the prompts can tell, a race
    may choose another than asking everyone would: see the next test.
    """
    rates = [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.2, 0.08]
    for seed in range(300):
        mixed = random.Random(seed).sample(rates, 12)  # noqa: S311 - no secret
        chosen, full, answered = _race(mixed, seed)
        assert chosen == full
        assert answered <= 12 * 80 / 2


def test_where_merges_hardly_differ_a_race_loses_little() -> None:
    """Six merges from .10 to .15 among worse ones: the race's choice is at most a point worse on average."""
    rates = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    found = [_race(rates, seed)[:2] for seed in range(300)]
    lost = [rates[int(chosen[1:])] - rates[int(full[1:])] for chosen, full in found]
    # Steps of a point between merges; standard error of the mean of 300 is below 0.002.
    assert sum(lost) / len(lost) < 0.01


def test_the_least_harmful_is_beaten_no_oftener_than_the_level_says() -> None:
    """Twelve equal candidates, each prompt flagged by a coin of its own: any of them is a least harmful one.

    How often one is dropped is averaged over the twelve, in 400 rounds at the level .05. The best of a
    round is picked by the flags that it is tested on; that a level of .05 holds all the same is the claim.
    """
    dropped = 0
    for seed in range(400):
        draw = random.Random(seed)  # noqa: S311 - no secret
        equal = {str(k): Standing({str(i): draw.random() < 0.4 for i in range(40)}, {}) for k in range(12)}
        dropped += len(halve(equal, Limits({}, {}), keep=1, alpha=0.05).dropped)
    assert 0 < dropped / 12 / 400 <= 0.05


def test_places_never_run_out() -> None:
    assert [most_kept(0.4, n) for n in (12, 5, 2, 1)] == [5, 2, 1, 1]
