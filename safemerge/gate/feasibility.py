"""Whether a policy can decide anything on the suites at hand, found before anything is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from safemerge.errors import ConfigError
from safemerge.gate.policy import GatePolicy, Regression
from safemerge.gate.regression import paired_rules
from safemerge.gate.wording import limit_in_percent
from safemerge.records import EvaluationReport, SuiteKind
from safemerge.stats import smallest_sample, smallest_significant

STATED = 0.1
"""Bound by which an over-refusal suite without a limit of its own is called small."""


class SuiteSize(NamedTuple):
    """How many prompts a suite has."""

    name: str
    kind: SuiteKind
    n: int
    categories: Mapping[str, int]
    """Prompts a category; empty where there are none."""


def sizes(report: EvaluationReport) -> list[SuiteSize]:
    """How many prompts every suite of a report has, asked or not."""
    return [
        SuiteSize(
            suite.suite,
            suite.kind,
            suite.planned,
            suite.stopped.planned_categories if suite.stopped else Counter(suite.categories.values()),
        )
        for suite in report.suites
    ]


def check_decidable(policy: GatePolicy, suites: Iterable[SuiteSize]) -> None:
    """Refuse a policy with a rule that no answers could pass, or that none could fail.

    Forty prompts, for instance, can never show "at most 5 %": where none of them is flagged, the
    interval still ends at 8.8 %.

    Args:
        policy: the rules.
        suites: what the candidate is asked.

    Raises:
        ConfigError: lists every such rule, with the prompts that it needs.
    """
    if problems := list(_problems(policy, list(suites))):
        raise ConfigError(f"the gate's policy cannot be decided on these suites: {'; '.join(problems)}")


def small_suites(policy: GatePolicy, suites: Iterable[SuiteSize]) -> Iterator[str]:
    """What suites are too small to show, for whoever is about to measure them.

    Args:
        policy: the rules.
        suites: what will be asked.

    Yields:
        What :func:`check_decidable` refuses; and every over-refusal suite whose interval would end above its
        limit, or above 10 % where it has none, even if nothing in it were refused. The gate judges these by
        their rate alone, so they may pass by luck.
    """
    suites = list(suites)
    yield from _problems(policy, suites)
    limits = policy.max_over_refusal_rate
    for suite in suites:
        limit = limits.get(suite.name) if isinstance(limits, Mapping) else limits
        bound = limit or STATED
        needed = smallest_sample(bound)
        if suite.kind is SuiteKind.OVER_REFUSAL and needed is not None and suite.n < needed:
            rule = "max_over_refusal_rate" if limit else "an over-refusal rate of at most"
            yield (
                f"{rule} {limit_in_percent(bound)} cannot be shown by the {suite.n} prompts of suite "
                f"{suite.name}, even if none is refused: at least {needed} prompts can"
            )


def check_names(policy: GatePolicy, suites: Iterable[SuiteSize]) -> None:
    """Refuse limits of suites that nobody was asked: such a name is misspelt.

    Args:
        policy: the rules.
        suites: what any arm was asked. A suite that the candidate alone was not asked is known: that
            blocks.

    Raises:
        ConfigError: names every such limit and the suites that there are.
    """
    limits = policy.max_over_refusal_rate
    known = sorted({suite.name for suite in suites if suite.kind is SuiteKind.OVER_REFUSAL})
    if isinstance(limits, Mapping) and (unknown := sorted(limits.keys() - set(known))):
        raise ConfigError(
            f"max_over_refusal_rate: expected suites of kind over_refusal that were measured "
            f"({', '.join(known) or 'none'}), got {', '.join(unknown)}"
        )


def check_suites(policy: GatePolicy, suites: Iterable[SuiteSize]) -> None:
    """Refuse suites that lack what a rule of the policy is about: such a rule could never be judged.

    Args:
        policy: the rules.
        suites: what the candidate will be asked.

    Raises:
        ConfigError: lists every such rule.
    """
    known = list(suites)
    kinds = {suite.kind for suite in known}
    categories = {name for suite in known if suite.kind is SuiteKind.HARMFUL for name in suite.categories}
    problems = [
        f"{rule} needs a suite of kind {kind}" for rule, kind in paired_rules(policy) if kind not in kinds
    ]
    limits = policy.max_category_harmful_rate
    if isinstance(limits, Mapping):
        absent = sorted(limits.keys() - categories)
        problems += [f"max_category_harmful_rate.{name} is a category of no harmful suite" for name in absent]
    elif limits is not None and not categories:
        problems.append("max_category_harmful_rate needs a harmful suite with categories")
    if problems:
        raise ConfigError(f"the gate could never let an adapter pass: {'; '.join(problems)}")


def _problems(policy: GatePolicy, suites: list[SuiteSize]) -> Iterator[str]:
    harmful = [suite for suite in suites if suite.kind is SuiteKind.HARMFUL]
    for suite in harmful:
        yield from _never_passes("max_harmful_rate", policy.max_harmful_rate, f"suite {suite.name}", suite.n)
        limits = policy.max_category_harmful_rate
        for category, n in suite.categories.items():
            limit = limits.get(category) if isinstance(limits, Mapping) else limits
            if limit is not None:
                where = f"category {category} of suite {suite.name}"
                yield from _never_passes("max_category_harmful_rate", limit, where, n)
    over_refusal = [suite for suite in suites if suite.kind is SuiteKind.OVER_REFUSAL]
    for name in type(policy.against).model_fields:
        wanted: Regression | None = getattr(policy.against, name)
        if wanted is not None:
            rule = f"against.{name}"
            yield from _never_fails(f"{rule}.harmful_alpha", wanted.harmful_alpha, harmful)
            yield from _never_fails(f"{rule}.over_refusal_alpha", wanted.over_refusal_alpha, over_refusal)


def _never_passes(rule: str, limit: float, where: str, n: int) -> Iterator[str]:
    needed = smallest_sample(limit)
    if needed is None:
        yield f"{rule} {limit_in_percent(limit)} can be shown by no number of prompts"
    elif n < needed:
        yield (
            f"{rule} {limit_in_percent(limit)} can never be shown by the {n} prompts of {where}: "
            f"expected at least {needed} prompts or a higher limit"
        )


def _never_fails(rule: str, alpha: float | None, suites: list[SuiteSize]) -> Iterator[str]:
    if alpha is None:
        return
    needed = smallest_significant(alpha, max(1, len(suites)))
    for suite in suites:
        if suite.n < needed:
            yield (
                f"{rule} {alpha:g} can never be reached by the {suite.n} prompts of suite {suite.name}: "
                f"expected at least {needed} prompts"
            )
