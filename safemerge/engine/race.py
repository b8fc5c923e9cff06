"""The rounds of ``tune``, replayed from reports: who is to be measured next, and who is chosen in the end.

Nothing is kept between rounds but the reports, so that a race goes on wherever it stopped, in one process or
as tasks of a pipeline, and always comes out the same. Round 0 measures utility and drops whose utility is
inferior; each round after it asks those left the next prompts of every suite, whose order is drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from safemerge.config.evaluation import EvaluationConfig, SuiteConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.tuning import TuningConfig
from safemerge.errors import ConfigError
from safemerge.evaluation.suites import Suite, bare_words, read_suite
from safemerge.gate.absolute import gain_rule
from safemerge.gate.policy import Regression
from safemerge.gate.regression import Reference, regression_rules
from safemerge.records import EvaluationReport, Outcome, RuleOutcome, SuiteKind
from safemerge.stats.halving import SLACK, Ending, Limits, Standing, choose, halve, places

UTILITY_ROUND = 0


class Reports(NamedTuple):
    """What has been measured on the development split."""

    aligned: EvaluationReport
    """Of the aligned model: utility alone, as of the fine-tuned adapter."""
    fine_tuned: EvaluationReport
    candidates: Mapping[str, Sequence[EvaluationReport]]
    """Name to one report a round, from round 0 on; each with the prompts that its round adds."""


class Stage(NamedTuple):
    """How far a race is."""

    round: int | None
    """The round to be measured next; None once it is over."""
    names: tuple[str, ...]
    """Who is to be measured in it."""
    fates: dict[str, Ending]
    """What became of the others; of all once it is over."""
    chosen: str | None = None
    """The winner; None before the end, and where none keeps the limits."""


class Race:
    """The rules of one race.

    Args:
        tuning: What is asked, in which rounds, and within which limits.
        layers: Candidate to the number of layers that it merges.
        suites: The suites of the development split, whole.
    """

    def __init__(self, tuning: TuningConfig, layers: Mapping[str, int], suites: Sequence[Suite]) -> None:
        self.tuning = tuning
        self.layers = layers
        self.sizes = {suite.name: len(suite.prompts) for suite in suites}
        self.rounds = round_sizes(tuning, self.sizes)
        refusing = [suite.name for suite in suites if suite.kind is SuiteKind.OVER_REFUSAL]
        rates = tuning.max_over_refusal_rate
        self._limits = Limits(
            rates if isinstance(rates, Mapping) else dict.fromkeys(refusing, rates),
            {name: self.sizes[name] for name in refusing},
        )

    @property
    def last(self) -> int:
        """Number of the round that leaves no prompt unasked."""
        return len(self.rounds)

    def most_prompts(self, number: int, candidates: int) -> int:
        """Most prompts that so many candidates may be asked from a round on."""
        total, asked = 0, [0, *(sum(sizes.values()) for sizes in self.rounds)]
        for later in range(max(number, 1), self.last + 1):
            total += candidates * (asked[later] - asked[later - 1])
            if later < self.last:
                candidates = places(self.tuning.rungs[later - 1].keep, candidates)
        return total

    def stage(self, reports: Reports) -> Stage:
        """Replay what has been measured."""
        left = tuple(self.layers)
        fates: dict[str, Ending] = {}
        for number in range(self.last + 1):
            measured = {name: reports.candidates.get(name, ()) for name in left}
            if any(len(found) <= number for found in measured.values()):
                return Stage(number, left, fates)
            standings = {
                name: self.standing(name, found[: number + 1], reports) for name, found in measured.items()
            }
            if number == self.last:
                chosen, ended = choose(standings, self._limits)
                return Stage(None, (), fates | ended, chosen)
            keep = 1.0 if number == UTILITY_ROUND else self.tuning.rungs[number - 1].keep
            left, dropped = halve(standings, self._limits, keep, self.tuning.alpha)
            fates |= dropped
            if not left:
                break
        return Stage(None, (), fates)

    def standing(self, name: str, found: Sequence[EvaluationReport], reports: Reports) -> Standing:
        """What reports say of a candidate, all its rounds together."""
        flags = together(found)
        utility = found[UTILITY_ROUND].utility
        value = 0.0 if utility is None or utility.value is None else utility.value
        return Standing(
            harmful={key: flag for suite in flags[SuiteKind.HARMFUL].values() for key, flag in suite.items()},
            refused=flags[SuiteKind.OVER_REFUSAL],
            utility=value if utility is None or utility.higher_is_better else -value,
            layers=self.layers[name],
            inferior=inferior(self.tuning, found[UTILITY_ROUND], reports),
        )


def together(reports: Sequence[EvaluationReport]) -> dict[SuiteKind, dict[str, dict[str, bool]]]:
    """Kind to suite to flags by ``suite/prompt id``, those of all reports of one arm together."""
    flags: dict[SuiteKind, dict[str, dict[str, bool]]] = {kind: {} for kind in SuiteKind}
    for report in reports:
        for suite in report.suites:
            found = flags[suite.kind].setdefault(suite.suite, {})
            found |= {f"{suite.suite}/{prompt}": flag for prompt, flag in suite.flags.items()}
    return flags


def inferior(tuning: TuningConfig, report: EvaluationReport, reports: Reports) -> str | None:
    """The limits of utility that a candidate misses, or is not shown to keep; None where it keeps them."""
    rules: Iterator[RuleOutcome] = gain_rule(
        report, reports.aligned, reports.fine_tuned, tuning.min_gain_kept
    )
    wrong = [rule.explanation for rule in rules if rule.outcome is not Outcome.PASS]
    if tuning.max_utility_loss is not None:
        margin = Regression(max_utility_loss=tuning.max_utility_loss)
        against = regression_rules(report, "fine_tuned", Reference(reports.fine_tuned), margin)
        wrong += [rule.explanation for rule in against if rule.outcome is not Outcome.PASS]
    return "; ".join(wrong) or None


# --- what a round asks ---------------------------------------------------------------


def round_sizes(tuning: TuningConfig, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Suite to the number of its prompts asked by the end of each round, from round 1 on."""
    shares = [rung.prompts for rung in tuning.rungs]
    ends = [{name: math.ceil(share * size - SLACK) for name, size in sizes.items()} for share in shares]
    return [*ends, dict(sizes)]


def shuffled(tuning: TuningConfig, suite: SuiteConfig) -> SuiteConfig:
    """A suite in the order in which it is asked."""
    return suite if suite.shuffle is not None else suite.model_copy(update={"shuffle": tuning.seed})


def read_split(tuning: TuningConfig) -> list[Suite]:
    """The suites of the development split, whole and in the order in which they are asked."""
    return [read_suite(shuffled(tuning, suite)) for suite in tuning.suites]


def round_settings(
    evaluation: EvaluationConfig, tuning: TuningConfig, sizes: Mapping[str, int], number: int
) -> EvaluationConfig:
    """What is measured in a round: utility alone in round 0, the prompts that it adds in every other."""
    if number == UTILITY_ROUND:
        return evaluation.model_copy(update={"utility": tuning.utility, "suites": (), "sequential": None})
    ends = [dict.fromkeys(sizes, 0), *round_sizes(tuning, sizes)]
    suites = [
        shuffled(tuning, suite).model_copy(
            update={"skip": suite.skip + start, "limit": ends[number][suite.name] - start}
        )
        for suite in tuning.suites
        if ends[number][suite.name] > (start := ends[number - 1][suite.name])
    ]
    # A round asks what it asks: candidates that were stopped early were not asked the same prompts.
    return evaluation.model_copy(
        update={"utility": tuning.utility, "suites": tuple(suites), "sequential": None}
    )


def tuning_of(config: PipelineConfig) -> TuningConfig:
    """The section that tells how to choose.

    Raises:
        ConfigError: there is none.
    """
    if config.tuning is None:
        raise ConfigError("tuning: expected the section that tells how to choose a merge, got none")
    return config.tuning


def check_unseen(config: PipelineConfig) -> list[Suite]:
    """Check that development and final split share no prompt; gives the development split.

    Raises:
        ConfigError: they do; the suites and the first prompts are named.
        DataError: a suite cannot be read.
    """
    split = read_split(tuning_of(config))
    final = {
        bare_words(prompt.text): f"{suite.name}/{prompt.id}"
        for suite in map(read_suite, config.evaluation.suites)
        for prompt in suite.prompts
    }
    shared = [
        f"{suite.name}/{prompt.id} = {final[bare_words(prompt.text)]}"
        for suite in split
        for prompt in suite.prompts
        if bare_words(prompt.text) in final
    ]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ConfigError(
            "tuning.suites: expected prompts that evaluation.suites does not ask, as final figures must come "
            f"from a split that the choice never saw, got {', '.join(sorted(shared)[:5])}{more}"
        )
    return split
