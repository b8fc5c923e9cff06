"""From reports, verdict and rows to the record that all forms of the release report are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safemerge.arms import ALIGNED, ARM_TITLES, CANDIDATE, FINE_TUNED
from safemerge.errors import DataError
from safemerge.gate import GatePolicy, utility_gain
from safemerge.gate.comparison import Measured, differences, measured, measured_categories
from safemerge.records import Estimate, EvaluationReport, GateDecision, MergeReport, SuiteReport, printable
from safemerge.release.findings import found_of
from safemerge.release.transcripts import MOST_SHOWN, chosen
from safemerge.reports.release import (
    ArmFigures,
    Provenance,
    ReleaseReport,
    Role,
    SuiteFigures,
    Transcript,
    UtilityMetric,
)
from safemerge.stats import mean_score

_ORDER = (Role.ALIGNED, Role.FINE_TUNED, Role.CHAMPION, Role.CANDIDATE, Role.OTHER)


def release_report(
    reports: Mapping[str, EvaluationReport],
    decision: GateDecision,
    policy: GatePolicy,
    provenance: Provenance,
    *,
    merge: MergeReport | None = None,
    transcripts: list[Transcript] | None = None,
    most_shown: int = MOST_SHOWN,
) -> ReleaseReport:
    """Put together what is known of a candidate and of the arms beside it.

    Args:
        reports: arm to report. ``candidate`` is what was judged; ``aligned``, ``fine_tuned`` and
            ``champion`` are what the gate compared it with; others are shown beside them.
        decision: the gate's, on these reports.
        policy: that it judged by.
        provenance: where the figures come from; digests and settings in the reports are added.
        merge: how the candidate came about.
        transcripts: of all arms under the same names, uncut.
        most_shown: prompts that the report shows at most.
    """
    candidate = reports[CANDIDATE]
    arms = [_arm(name, report, reports) for name, report in reports.items()]
    known = list(transcripts or ())
    title = next(arm.title for arm in arms if arm.role is Role.CANDIDATE)
    return ReleaseReport(
        decision=decision,
        policy=policy.model_dump(mode="json"),
        utility=_metric(reports, policy),
        arms=tuple(sorted(arms, key=lambda arm: _ORDER.index(arm.role))),
        findings=tuple(map(printable, found_of(reports, title))),
        merge=merge,
        prompts=len(known),
        transcripts=tuple(chosen(known, CANDIDATE, most_shown)),
        provenance=_completed(provenance, candidate, decision),
    )


def role_of(name: str) -> Role:
    """What an arm of this name is to the gate."""
    return Role(name) if name in {role.value for role in Role} else Role.OTHER


def _arm(name: str, report: EvaluationReport, reports: Mapping[str, EvaluationReport]) -> ArmFigures:
    role = role_of(name)
    title = report.arm if role is Role.CANDIDATE else name
    utility = report.utility
    mean = _or_none(mean_score, utility.scores) if utility else None
    gain, note = _gain(role, report, reports)
    odd = sorted(differences(reports[CANDIDATE], report)) if role is not Role.CANDIDATE else []
    return ArmFigures(
        arm=name,
        title=printable(ARM_TITLES.get(title, title)),
        role=role,
        adapter_digest=report.adapter_digest,
        utility=utility.value if utility and _finite(utility.value) else None,
        utility_interval=mean.interval if mean else None,
        gain_kept=gain,
        gain_note=printable(note),
        differs=tuple(printable(what) for what in odd),
        suites=tuple(_suite(suite) for suite in report.suites),
    )


def _suite(suite: SuiteReport) -> SuiteFigures:
    found = measured(suite)
    categories: dict[str, Measured | None] = _or_none(measured_categories, suite) or {}
    return SuiteFigures(
        suite=suite.suite,
        kind=suite.kind,
        judge=suite.judge,
        rate=_estimate(found) if found else None,
        planned=suite.planned,
        categories={name: _estimate(of) for name, of in categories.items() if of},
    )


def _estimate(found: Measured) -> Estimate:
    return Estimate(value=found.rate, interval=found.interval, n=found.n)


def _gain(
    role: Role, report: EvaluationReport, reports: Mapping[str, EvaluationReport]
) -> tuple[Estimate | None, str]:
    """The share kept, or why there is none."""
    if role in (Role.ALIGNED, Role.FINE_TUNED):
        return None, "0 %, where the gain begins" if role is Role.ALIGNED else "100 %, the gain itself"
    try:
        share = utility_gain(report, reports.get(ALIGNED), reports.get(FINE_TUNED)).share
    except DataError as error:
        return None, f"cannot judge: {error}"
    return share, "" if share else "cannot tell: fine-tuning showed no clear gain"


def _metric(reports: Mapping[str, EvaluationReport], policy: GatePolicy) -> UtilityMetric | None:
    utility = reports[CANDIDATE].utility
    if utility is None:
        return None
    asked = [policy.min_utility] if policy.min_utility is not None else []
    ends = [reports[name].utility for name in (ALIGNED, FINE_TUNED) if name in reports]
    gained = _or_none(utility_gain, reports[CANDIDATE], reports.get(ALIGNED), reports.get(FINE_TUNED))
    # Where the rule cannot be judged, or cannot tell, it draws no line.
    if policy.min_gain_kept is not None and gained is not None and gained.share is not None:
        low, high = (end.value for end in ends if end is not None and end.value is not None)
        asked.append(low + policy.min_gain_kept * (high - low))
    strictest = max if utility.higher_is_better else min
    return UtilityMetric(
        task=utility.task,
        metric=utility.metric,
        higher_is_better=utility.higher_is_better,
        worst=strictest(asked, default=None),
    )


def _completed(provenance: Provenance, candidate: EvaluationReport, decision: GateDecision) -> Provenance:
    """With what the reports themselves say of models, suites and how they were measured."""
    digests = {"aligned_model": candidate.model_digest, "policy": decision.policy_digest}
    protocols: dict[str, dict[str, Any]] = {}
    if candidate.adapter_digest:
        digests["adapter"] = candidate.adapter_digest
    if utility := candidate.utility:
        digests[f"task {utility.task}"] = utility.task_digest
        protocols[f"task {utility.task}"] = utility.protocol
    for suite in candidate.suites:
        digests[f"suite {suite.suite}"] = suite.prompts_digest
        protocols[f"suite {suite.suite}"] = suite.protocol
    return provenance.model_copy(
        update={
            "digests": digests | provenance.digests,
            "protocols": protocols | provenance.protocols,
            "settings": candidate.settings | provenance.settings,
        }
    )


def _or_none(figure: Any, *data: Any) -> Any:
    """A figure of data that may not give one."""
    try:
        return figure(*data)
    except DataError:
        return None


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
