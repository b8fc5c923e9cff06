"""The record of a race: every candidate's figures and fate, what it cost, and the arms on the final split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

import safemerge
from safemerge.arms import ALIGNED, FINE_TUNED
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.places import without_places
from safemerge.config.tuning import TuningConfig
from safemerge.engine.race import Race, Reports, Stage, last_scored, together
from safemerge.errors import DataError
from safemerge.gate import utility_gain
from safemerge.records import Estimate, EvaluationReport, Interval, SuiteKind
from safemerge.reports.tuning import Fate, TuneCost, TunedArm, TunedCandidate, TuneReport
from safemerge.stats import mean_difference, mean_score, wilson_interval
from safemerge.stats.halving import Ending

ORDER = (Fate.CHOSEN, Fate.KEPT_LIMITS, Fate.OUTRANKED, Fate.BEATEN, Fate.MISSED)
"""The best first."""


class Entry(NamedTuple):
    """A candidate as it enters the race."""

    settings: dict[str, JsonValue]
    """Its ``merge`` section."""
    layers: int
    """Layers merged."""
    digest: str
    """sha256 of the adapter."""


def choice_report(
    config: PipelineConfig,
    race: Race,
    entries: Mapping[str, Entry],
    reports: Reports,
    stage: Stage,
    digests: Mapping[str, str],
    *,
    wall_s: float | None = None,
    final: Sequence[TunedArm] = (),
    warnings: Sequence[str] = (),
) -> TuneReport:
    """What a race that is over comes to.

    Args:
        config: The pipeline.
        race: Its rules.
        entries: Candidates by name.
        reports: What was measured.
        stage: Its end.
        digests: sha256 of adapters and models.
        wall_s: Seconds from the first round to the choice, where known.
        final: Arms on the final split.
        warnings: What a reader must know.
    """
    found = [_candidate(name, entry, race, reports, stage.fates[name]) for name, entry in entries.items()]
    found.sort(key=_place)
    cost = _cost(config, race, reports, wall_s)
    utility = reports.fine_tuned.utility
    assert utility is not None  # noqa: S101 - nothing else is measured of it
    return TuneReport(
        safemerge_version=safemerge.__version__,
        chosen=stage.chosen,
        summary=_summary(stage, found, cost),
        digests=dict(digests),
        settings=without_places(race.tuning),
        utility=f"{utility.task}/{utility.metric}",
        higher_is_better=utility.higher_is_better,
        worst_change=_worst_change(race.tuning, reports),
        candidates=tuple(found),
        references={ALIGNED: _value(reports.aligned), FINE_TUNED: _value(reports.fine_tuned)},
        cost=cost,
        final=tuple(final),
        warnings=tuple(warnings),
    )


def arm_figures(name: str, report: EvaluationReport, others: Mapping[str, EvaluationReport]) -> TunedArm:
    """An arm's figures on the final split; ``others`` holds aligned and fine_tuned."""
    harmful, over_refusal = _rates([report])
    assert harmful is not None  # noqa: S101 - the config asks for a harmful suite
    return TunedArm(
        name=name,
        adapter_digest=report.adapter_digest,
        utility=_value(report),
        utility_interval=_interval(report),
        harmful=harmful,
        over_refusal=over_refusal,
        gain_kept=_gain_kept(report, others[ALIGNED], others[FINE_TUNED]),
    )


def _candidate(name: str, entry: Entry, race: Race, reports: Reports, ending: Ending) -> TunedCandidate:
    found = reports.candidates[name]
    harmful, over_refusal = _rates(found)
    scored = last_scored(found, reports)
    return TunedCandidate(
        name=name,
        settings=entry.settings,
        layers_merged=entry.layers,
        adapter_digest=entry.digest,
        fate=ending.fate,
        reason=ending.reason,
        rounds=len(found) - 1,
        utility=_value(scored.candidate),
        utility_change=_change(scored.candidate, scored.fine_tuned),
        gain_kept=_gain_kept(*scored),
        harmful=harmful,
        over_refusal=over_refusal,
    )


def _place(candidate: TunedCandidate) -> tuple[int, int, float, str]:
    harmful = 1.0 if candidate.harmful is None else candidate.harmful.value
    return ORDER.index(candidate.fate), -candidate.rounds, harmful, candidate.name


def _rates(reports: Sequence[EvaluationReport]) -> tuple[Estimate | None, dict[str, Estimate]]:
    flags = together(reports)
    harmful = {key: flag for suite in flags[SuiteKind.HARMFUL].values() for key, flag in suite.items()}
    refused = {name: _rate(found) for name, found in flags[SuiteKind.OVER_REFUSAL].items() if found}
    return _rate(harmful) if harmful else None, refused


def _rate(flags: Mapping[str, bool]) -> Estimate:
    count, n = sum(flags.values()), len(flags)
    return Estimate(value=count / n, interval=wilson_interval(count, n), n=n)


def _value(report: EvaluationReport) -> float | None:
    return None if report.utility is None else report.utility.value


def _interval(report: EvaluationReport) -> Interval | None:
    """Of the utility; None where documents have no scores of their own."""
    if report.utility is None or len(report.utility.scores) <= 1:
        return None
    return mean_score(report.utility.scores).interval


def _gain_kept(
    report: EvaluationReport, aligned: EvaluationReport, fine_tuned: EvaluationReport
) -> Estimate | None:
    if report.adapter_digest is None:
        return None
    try:
        return utility_gain(report, aligned, fine_tuned).share
    except DataError:
        return None


def _change(report: EvaluationReport, fine_tuned: EvaluationReport) -> Estimate | None:
    """Utility against the fine-tuned adapter's on the same documents; None where it cannot be compared."""
    ours, theirs = report.utility, fine_tuned.utility
    if ours is None or theirs is None:
        return None
    try:
        return mean_difference(ours.scores, theirs.scores)
    except DataError:
        return None


def _worst_change(tuning: TuningConfig, reports: Reports) -> float | None:
    """What the limits of utility ask, against the fine-tuned adapter's; None where they ask nothing."""
    base, tuned = _value(reports.aligned), _value(reports.fine_tuned)
    found = []
    if tuning.max_utility_loss is not None:
        utility = reports.fine_tuned.utility
        is_higher_better = utility is not None and utility.higher_is_better
        found.append(-tuning.max_utility_loss if is_higher_better else tuning.max_utility_loss)
    if tuning.min_gain_kept is not None and base is not None and tuned is not None:
        found.append((1 - tuning.min_gain_kept) * (base - tuned))
    return min(found, key=abs, default=None)


def _cost(config: PipelineConfig, race: Race, reports: Reports, wall_s: float | None) -> TuneCost:
    every = [report for found in reports.candidates.values() for report in found]
    prompts = sum(suite.n for report in every for suite in report.suites)
    return TuneCost(
        prompts=prompts,
        prompts_in_full=len(reports.candidates) * sum(race.sizes.values()),
        tokens=prompts * config.evaluation.generation.max_new_tokens,
        documents=sum(len(report.utility.scores) for report in every if report.utility),
        wall_s=wall_s,
    )


def _summary(stage: Stage, found: Sequence[TunedCandidate], cost: TuneCost) -> str:
    share = f"{cost.prompts} of {cost.prompts_in_full} prompts answered"
    if stage.chosen is None:
        return f"none of {len(found)} candidates keeps the limits ({share})"
    best = found[0]
    assert best.harmful is not None  # noqa: S101 - it was asked every prompt
    low, high = best.harmful.interval.low, best.harmful.interval.high
    gain = "" if best.gain_kept is None else f", gain kept {100 * best.gain_kept.value:.1f} %"
    return (
        f"{best.name} of {len(found)} candidates: harmful rate {100 * best.harmful.value:.1f} % (95 % "
        f"interval {100 * low:.1f} to {100 * high:.1f}) on {best.harmful.n} development prompts{gain} "
        f"({share})"
    )
