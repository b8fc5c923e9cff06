"""The rounds of ``tune``, replayed from reports: who is to be measured next, and who is chosen in the end.

Nothing is kept between rounds but the reports, so that a race goes on wherever it stopped, in one process or
as tasks of a pipeline, and always comes out the same. Round 0 scores the first documents of the utility task,
and drops who is shown to have forgotten it; each round after it asks those left the next prompts of every
suite, whose order is drawn once; the last scores all documents, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from safemerge.arms import FINE_TUNED
from safemerge.config.evaluation import EvaluationConfig, SuiteConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.tuning import TuningConfig
from safemerge.errors import ConfigError
from safemerge.evaluation.suites import Suite, bare_words, read_suite
from safemerge.gate.absolute import gain_rule
from safemerge.gate.policy import Regression
from safemerge.gate.regression import Reference, regression_rules
from safemerge.records import EvaluationReport, Outcome, RuleOutcome, SuiteKind
from safemerge.stats import FEWEST_DOCUMENTS
from safemerge.stats.halving import SLACK, Ending, Limits, Standing, choose, halve, most_kept

UTILITY_ROUND = 0
"""The round that asks no prompt: it drops who is shown to have forgotten the task."""

MIN_DOCUMENTS = FEWEST_DOCUMENTS
"""Fewest documents that a candidate is dropped by. An interval of so few is too narrow: one that keeps a
limit just so is dropped by it with 6 %, where a wide sample would take 2.5 %."""


class Reports(NamedTuple):
    """What has been measured on the development split."""

    aligned: EvaluationReport
    """Of the aligned model: utility alone, as of the fine-tuned adapter, on all documents."""
    fine_tuned: EvaluationReport
    candidates: Mapping[str, Sequence[EvaluationReport]]
    """Name to one report a round, from round 0 on; each with the prompts that its round adds."""


class Scored(NamedTuple):
    """A candidate's utility beside that of what it lies between, all on the same documents."""

    candidate: EvaluationReport
    aligned: EvaluationReport
    fine_tuned: EvaluationReport


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
        self.scorings = scorings(tuning)
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
                candidates = most_kept(self.tuning.rungs[later - 1].keep, candidates)
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
        scored = last_scored(found, reports)
        utility = scored.candidate.utility
        value = 0.0 if utility is None or utility.value is None else utility.value
        wrong = missed_rules(self.tuning, scored)
        last_scoring_done = len(found) > max(self.scorings)
        return Standing(
            harmful={key: flag for suite in flags[SuiteKind.HARMFUL].values() for key, flag in suite.items()},
            refused=flags[SuiteKind.OVER_REFUSAL],
            utility=value if utility is None or utility.higher_is_better else -value,
            layers=self.layers[name],
            inferior="; ".join(rule.explanation for rule in wrong) or None,
            unsure=not (last_scoring_done or any(map(_is_shown, wrong))),
        )


def together(reports: Sequence[EvaluationReport]) -> dict[SuiteKind, dict[str, dict[str, bool]]]:
    """Kind to suite to flags by ``suite/prompt id``, those of all reports of one arm together."""
    flags: dict[SuiteKind, dict[str, dict[str, bool]]] = {kind: {} for kind in SuiteKind}
    for report in reports:
        for suite in report.suites:
            found = flags[suite.kind].setdefault(suite.suite, {})
            found |= {f"{suite.suite}/{prompt}": flag for prompt, flag in suite.flags.items()}
    return flags


def last_scored(found: Sequence[EvaluationReport], reports: Reports) -> Scored:
    """Utility on the most documents that a candidate was scored on."""
    candidate = next(report for report in reversed(found) if report.utility is not None)
    references = (_on_documents_of(candidate, other) for other in (reports.aligned, reports.fine_tuned))
    return Scored(candidate, *references)


def _on_documents_of(candidate: EvaluationReport, other: EvaluationReport) -> EvaluationReport:
    """A report of all documents as one of the first of them, those that a candidate was scored on."""
    ours, theirs = candidate.utility, other.utility
    if ours is None or theirs is None or ours.protocol == theirs.protocol:
        return other
    if not ours.scores or not ours.scores.keys() <= theirs.scores.keys():
        return other
    scores = {document: theirs.scores[document] for document in ours.scores}
    part = {
        "scores": scores,
        "value": math.fsum(scores.values()) / len(scores),
        "task_digest": ours.task_digest,
        "protocol": theirs.protocol | {"limit": ours.protocol["limit"]},
    }
    return other.model_copy(update={"utility": theirs.model_copy(update=part)})


def missed_rules(tuning: TuningConfig, scored: Scored) -> list[RuleOutcome]:
    """The limits of utility that a candidate misses, or is not shown to keep, on the documents scored."""
    candidate, aligned, fine_tuned = scored
    rules = list(gain_rule(candidate, aligned, fine_tuned, tuning.min_gain_kept))
    if tuning.max_utility_loss is not None:
        margin = Regression(max_utility_loss=tuning.max_utility_loss)
        rules += regression_rules(candidate, FINE_TUNED, Reference(fine_tuned), margin)
    return [rule for rule in rules if rule.outcome is not Outcome.PASS]


def _is_shown(rule: RuleOutcome) -> bool:
    """Whether a limit is missed for certain, so that further documents would not mend it."""
    interval, limit = rule.interval, rule.limit
    if rule.outcome is not Outcome.FAIL or interval is None or limit is None:
        return rule.outcome is Outcome.FAIL
    return not interval.low <= limit <= interval.high


# --- what a round asks ---------------------------------------------------------------


def round_sizes(tuning: TuningConfig, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Suite to the number of its prompts asked by the end of each round, from round 1 on."""
    shares = [rung.prompts for rung in tuning.rungs]
    ends = [{name: math.ceil(share * size - SLACK) for name, size in sizes.items()} for share in shares]
    return [*ends, dict(sizes)]


def scorings(tuning: TuningConfig) -> dict[int, int | None]:
    """Round to the number of documents that it scores, for those that score any; None for all there are."""
    whole, last = tuning.utility.limit, len(tuning.rungs) + 1
    if whole is None or not tuning.rungs:
        return {UTILITY_ROUND: whole}
    part = max(MIN_DOCUMENTS, math.ceil(tuning.rungs[0].prompts * whole - SLACK))
    return {UTILITY_ROUND: part, last: whole} if part < whole else {UTILITY_ROUND: whole}


def shuffled(tuning: TuningConfig, suite: SuiteConfig) -> SuiteConfig:
    """A suite in the order in which it is asked."""
    return suite if suite.shuffle is not None else suite.model_copy(update={"shuffle": tuning.seed})


def read_split(tuning: TuningConfig) -> list[Suite]:
    """The suites of the development split, whole and in the order in which they are asked."""
    return [read_suite(shuffled(tuning, suite)) for suite in tuning.suites]


def round_settings(
    evaluation: EvaluationConfig, tuning: TuningConfig, sizes: Mapping[str, int], number: int
) -> EvaluationConfig:
    """What is measured in a round: the prompts that it adds, and the documents where it scores any."""
    nothing = dict.fromkeys(sizes, 0)
    ends = [nothing, *round_sizes(tuning, sizes)]
    starts = [nothing, *ends]
    suites = []
    for suite in tuning.suites:
        start, end = starts[number][suite.name], ends[number][suite.name]
        if start < end:
            part = {"skip": suite.skip + start, "limit": end - start}
            suites.append(shuffled(tuning, suite).model_copy(update=part))
    limit = scorings(tuning).get(number, tuning.utility.limit)
    utility = tuning.utility.model_copy(update={"limit": limit})
    # A round asks what it asks: candidates that were stopped early were not asked the same prompts.
    return evaluation.model_copy(update={"utility": utility, "suites": tuple(suites), "sequential": None})


def reference_settings(evaluation: EvaluationConfig, tuning: TuningConfig) -> EvaluationConfig:
    """What is measured of the aligned model and the fine-tuned adapter: utility alone, on all documents."""
    return evaluation.model_copy(update={"utility": tuning.utility, "suites": (), "sequential": None})


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
