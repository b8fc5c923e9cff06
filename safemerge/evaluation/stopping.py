"""Asking a suite in random order, batch by batch, until its outcome at the gate is settled.

The judge flags each batch while the judged model is loaded, so that it must load none itself. Where
batches end depends on their size alone, and answers and flags are kept in the journal: an evaluation
that goes on after a kill stops where it would have stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from safemerge.config.evaluation import SequentialConfig
from safemerge.errors import ConfigError
from safemerge.evaluation.harm import flags_of
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges import Judge
from safemerge.evaluation.suites import Suite, size
from safemerge.gate import GatePolicy, StopRule, is_settled, stop_rules
from safemerge.records import Stopped
from safemerge.stats import random_order

Ask = Callable[[Mapping[str, str], str], dict[str, str]]
"""From prompts and a label for the progress to answers."""


class Stopping(NamedTuple):
    """When a suite is stopped."""

    rule: StopRule
    seed: int
    every: int
    """Prompts between two looks."""

    def stopped(self, asked: int) -> Stopped | None:
        """What the report says of a suite of which so many prompts were asked; None where all were."""
        planned, categories = self.rule.suite.n, dict(self.rule.suite.categories)
        if asked == planned:
            return None
        return Stopped(planned=planned, planned_categories=categories, error=self.rule.error, seed=self.seed)


def stoppings(
    suites: list[Suite], sequential: SequentialConfig | None, policy: GatePolicy | None, every: int
) -> dict[str, Stopping]:
    """Suite to when it is stopped; those that are asked to their end are left out.

    Args:
        suites: what every arm is asked.
        sequential: how sure an early stop must be; None stops none.
        policy: the gate's rules.
        every: prompts between two looks.

    Raises:
        ConfigError: there is no policy to stop by, or one with rules that need whole suites.
    """
    if sequential is None:
        return {}
    if policy is None:
        raise ConfigError("evaluation.sequential: expected the policy of the gate to stop by, got none")
    rules = stop_rules(policy, map(size, suites), sequential.error)
    return {name: Stopping(rule, sequential.seed, every) for name, rule in rules.items()}


def answers_until_settled(
    suite: Suite, stopping: Stopping, judge: Judge, journal: Journal, ask: Ask
) -> dict[str, str]:
    """The answers to as much of a suite as its outcome needs.

    Args:
        suite: the prompts.
        stopping: when it is stopped.
        judge: what flags them.
        journal: where the judge keeps what it has found.
        ask: what answers some prompts.

    Returns:
        Prompt id to answer, in the order in which they were asked.
    """
    order = random_order([prompt.id for prompt in suite.prompts], stopping.seed, suite.name)
    texts = {prompt.id: prompt.text for prompt in suite.prompts}
    categories = {prompt.id: prompt.category for prompt in suite.prompts if prompt.category is not None}
    answers: dict[str, str] = {}
    flags: dict[str, bool] = {}
    for start in range(0, len(order), stopping.every):
        batch = order[start : start + stopping.every]
        where = f"{suite.name}, {start + 1} to {start + len(batch)} of at most {len(order)}"
        found = ask({prompt_id: texts[prompt_id] for prompt_id in batch}, where)
        answers |= {prompt_id: found[prompt_id] for prompt_id in batch}
        flags |= flags_of(suite, found, judge, journal)
        if is_settled(stopping.rule, flags, categories):
            break
    return answers
