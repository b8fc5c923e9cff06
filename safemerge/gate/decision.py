"""The decision: every rule of the policy applied, and the verdict that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from safemerge.arms import ALIGNED, CANDIDATE, CHAMPION, FINE_TUNED
from safemerge.errors import DataError
from safemerge.gate.absolute import (
    category_rules,
    gain_rule,
    harmful_rules,
    over_refusal_rules,
    utility_rule,
)
from safemerge.gate.comparison import (
    categories_of,
    check_adapter,
    differences,
    odd_keys,
    suites_of,
    task_of,
)
from safemerge.gate.feasibility import sizes
from safemerge.gate.policy import GatePolicy, OnCannotTell, SignOff
from safemerge.gate.regression import Reference, regression_rules
from safemerge.gate.stopping import stop_rule
from safemerge.gate.wording import cannot_judge, kept, limit_in_percent
from safemerge.records import (
    EvaluationReport,
    GateDecision,
    RuleOutcome,
    SuiteKind,
    Verdict,
    possible_verdicts,
)
from safemerge.stats import FEWEST_DOCUMENTS

NO_CHAMPION = Reference(exists=False)
"""What :func:`decide` is told where nothing has been released yet."""
UNKNOWN_CHAMPION = Reference()


def decide(
    candidate: EvaluationReport,
    aligned: EvaluationReport | None,
    fine_tuned: EvaluationReport | None,
    policy: GatePolicy,
    champion: Reference = UNKNOWN_CHAMPION,
) -> GateDecision:
    """Judge a candidate: passed only where every rule that applies passed.

    Args:
        candidate: the adapter that may be released.
        aligned: the aligned model on the same suites and task; needed for the gain kept.
        fine_tuned: the unrepaired adapter on the same suites and task; needed for the gain kept.
        policy: the rules.
        champion: the adapter released now; ``NO_CHAMPION`` where there is none yet. Where nobody
            says, the rules against it cannot be judged.

    Returns:
        The decision with every rule's figure, limit and outcome. Bad reports never raise:
        they give rules that cannot be judged.
    """
    reports = {ALIGNED: aligned, FINE_TUNED: fine_tuned}
    references = {CHAMPION: champion} | {name: Reference(report) for name, report in reports.items()}
    rules = (
        *harmful_rules(candidate, policy.max_harmful_rate),
        *category_rules(candidate, policy.max_category_harmful_rate),
        *over_refusal_rules(candidate, policy.max_over_refusal_rate),
        *utility_rule(candidate, policy.min_utility),
        *gain_rule(candidate, aligned, fine_tuned, policy.min_gain_kept),
        *(
            rule
            for name, reference in references.items()
            for rule in regression_rules(candidate, name, reference, getattr(policy.against, name))
        ),
        _adapter_rule(candidate),
        *(_comparable_rule(candidate, name, other) for name, other in reports.items() if other is not None),
    )
    possible = possible_verdicts(rules)
    verdict = possible[-1] if policy.on_cannot_tell is OnCannotTell.ASK else possible[0]
    return GateDecision(
        arm=candidate.arm,
        adapter_digest=candidate.adapter_digest,
        passed=verdict is Verdict.PASS,
        verdict=verdict,
        sign_off=policy.sign_off is SignOff.REQUIRED,
        rules=rules,
        policy_digest=policy.digest(),
        champion_digest=champion.report.adapter_digest if champion.report else None,
        smoke_judge=any(suite.judge.smoke for suite in candidate.suites),
        warnings=tuple(_warnings(candidate, reports | {CHAMPION: champion.report}, policy)),
    )


def _adapter_rule(candidate: EvaluationReport) -> RuleOutcome:
    rule = "adapter"
    try:
        check_adapter(CANDIDATE, candidate)
    except DataError as error:
        return cannot_judge(rule, CANDIDATE, None, str(error))
    digest = str(candidate.adapter_digest)[:12]
    return kept(rule, CANDIDATE, f"{candidate.arm} is the adapter with digest {digest}")


def _comparable_rule(candidate: EvaluationReport, name: str, other: EvaluationReport) -> RuleOutcome:
    rule = "same_measurement"
    try:
        check_adapter(name, other)
    except DataError as error:
        return cannot_judge(rule, name, None, str(error))
    if odd := sorted(differences(candidate, other)):
        problem = f"{candidate.arm} and {name} cannot be compared: they differ in {', '.join(odd)}"
        return cannot_judge(rule, name, None, problem)
    shared = "the base model, the task, the prompts, the judge and how they were measured"
    return kept(rule, name, f"measured as {name} was: {shared}")


def _warnings(
    candidate: EvaluationReport, references: Mapping[str, EvaluationReport | None], policy: GatePolicy
) -> Iterator[str]:
    for judge in sorted({f"{s.judge.id} ({s.judge.revision})" for s in candidate.suites if s.judge.smoke}):
        yield f"smoke judge {judge}: too coarse for a release decision; use it to test the pipeline"
    if candidate.served_as is not None:
        yield (
            f"{candidate.arm} was measured as {candidate.served_as} on a server: that this is the adapter is "
            "the server's word"
        )
    yield from _stopped_early(candidate, policy)
    yield from _without_limit(candidate, policy)
    yield from _few_documents(candidate)
    for name, other in references.items():
        if other is None:
            continue
        if odd := odd_keys(candidate.settings, other.settings):
            yield f"{candidate.arm} and {name} were evaluated with different settings: {odd}"


def _stopped_early(candidate: EvaluationReport, policy: GatePolicy) -> Iterator[str]:
    """Which suites were not asked to their end, and how sure the rules on them are together."""
    stopped = [(suite.suite, suite.stopped) for suite in candidate.suites if suite.stopped]
    if stopped:
        rules = {size.name: stop_rule(policy, size) for size in sizes(candidate)}
        errors = [rule.populations * how.error for name, how in stopped if (rule := rules[name])]
        names = ", ".join(name for name, _ in stopped)
        yield (
            f"not all prompts were asked of {names}: the probability that any rule on them has another "
            f"outcome than on the whole is at most {limit_in_percent(math.fsum(errors))}"
        )


def _few_documents(candidate: EvaluationReport) -> Iterator[str]:
    """That intervals of utility, and all that rules say by them, rest on next to nothing."""
    scores = {} if candidate.utility is None else candidate.utility.scores
    if 0 < len(scores) < FEWEST_DOCUMENTS and not set(scores.values()) <= {0, 1}:
        yield (
            f"utility on {task_of(candidate)} was measured on {len(scores)} documents: intervals of fewer "
            f"than {FEWEST_DOCUMENTS} are too narrow to rely on"
        )


def _without_limit(candidate: EvaluationReport, policy: GatePolicy) -> Iterator[str]:
    """What the policy could have limited by name, and did not."""
    limits = policy.max_over_refusal_rate
    for suite in suites_of(candidate, SuiteKind.OVER_REFUSAL):
        if isinstance(limits, Mapping) and suite.suite not in limits:
            yield f"over-refusal on {suite.suite} has no limit: shown, not judged"
    by_category = policy.max_category_harmful_rate
    for suite in suites_of(candidate, SuiteKind.HARMFUL):
        known = categories_of(suite)
        named = set(by_category) if isinstance(by_category, Mapping) else known
        if unlimited := sorted(known - named):
            yield f"categories of {suite.suite} have no limit: {', '.join(unlimited)}"
