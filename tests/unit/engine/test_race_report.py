"""The record of a race: the order of candidates, what the limits ask, and what there is no figure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.engine.race import Race, Reports, Stage, read_split
from safemerge.engine.race_report import Entry, arm_figures, choice_report
from safemerge.records import EvaluationReport
from safemerge.reports.tuning import Fate, TuneReport
from safemerge.stats.halving import Ending
from tests.unit.engine.races import Judge, report

ALIGNED, FINE_TUNED = report(None, 0.0), report("f", 1.0)


def asked(harm: int = 0, n: int = 4) -> EvaluationReport:
    """A round that asked n harmful prompts, of which so many are flagged."""
    return report("c", suites={"harm": {str(i): i < harm for i in range(n)}})


def recorded(
    config: PipelineConfig,
    candidates: Mapping[str, Sequence[EvaluationReport]],
    fates: Mapping[str, Fate],
    aligned: EvaluationReport = ALIGNED,
    fine_tuned: EvaluationReport = FINE_TUNED,
) -> TuneReport:
    assert config.tuning is not None
    chosen = next((name for name, fate in fates.items() if fate is Fate.CHOSEN), None)
    return choice_report(
        config,
        Race(config.tuning, dict.fromkeys(candidates, 3), read_split(config.tuning)),
        {name: Entry({}, 3, name) for name in candidates},
        Reports(aligned, fine_tuned, candidates),
        Stage(None, (), {name: Ending(fate, "why") for name, fate in fates.items()}, chosen),
        digests={},
    )


def test_candidates_stand_by_fate_then_rounds_then_harm_then_name(pipeline: PipelineConfig) -> None:
    first = report("c", 0.95)
    candidates = {
        "missed": ([first], Fate.MISSED),
        "beaten": ([first, asked(0)], Fate.BEATEN),
        "worse": ([first, asked(2)], Fate.OUTRANKED),
        "fair": ([first, asked(1)], Fate.OUTRANKED),
        "also fair": ([first, asked(1)], Fate.OUTRANKED),
        "late": ([first, asked(3), asked(3)], Fate.OUTRANKED),
        "second": ([first, asked(4)], Fate.KEPT_LIMITS),
        "best": ([first, asked(4)], Fate.CHOSEN),
    }
    found = recorded(
        pipeline,
        {name: reports for name, (reports, _) in candidates.items()},
        {name: fate for name, (_, fate) in candidates.items()},
    )
    order = ["best", "second", "late", "also fair", "fair", "worse", "beaten", "missed"]
    assert [candidate.name for candidate in found.candidates] == order
    assert (found.chosen, found.winner.name) == ("best", "best")


def test_a_race_is_summed_up_with_what_it_cost(pipeline: PipelineConfig) -> None:
    judge = Judge(pipeline.tuning, {"a": 9, "b": 0, "e": 0}, {"e": 0.5})
    reports, stage = judge.run()
    entries = {name: Entry({}, 3, name) for name in reports.candidates}
    found = choice_report(pipeline, judge.race, entries, reports, stage, {}, wall_s=2.0)
    # b is asked all 14 prompts, a those of as many rounds as it stays in, e none.
    asked_a = sum(suite.n for one in reports.candidates["a"] for suite in one.suites)
    assert 0 < asked_a < 14
    assert (found.cost.prompts, found.cost.prompts_in_full) == (14 + asked_a, 3 * 14)
    assert found.cost.tokens == found.cost.prompts * pipeline.evaluation.generation.max_new_tokens
    assert (found.cost.documents, found.cost.wall_s) == (3 * 20, 2.0)
    assert found.summary.startswith(
        "b of 3 candidates: harmful rate 0.0 % (95 % interval 0.0 to 27.8) on 10 "
    )
    assert found.summary.endswith(f"gain kept 95.0 % ({14 + asked_a} of 42 prompts answered)")
    none = recorded(pipeline, {"a": [report("c", 0.5)]}, {"a": Fate.MISSED})
    assert none.summary == "none of 1 candidates keeps the limits (0 of 14 prompts answered)"


@pytest.mark.parametrize(
    ("limits", "higher_is_better", "expected"),
    [
        ({"min_gain_kept": 0.9}, True, -0.1),
        ({"min_gain_kept": None, "max_utility_loss": 0.05}, True, -0.05),
        ({"min_gain_kept": None, "max_utility_loss": 0.05}, False, 0.05),
        ({"min_gain_kept": 0.9, "max_utility_loss": 0.05}, True, -0.05),
        ({"min_gain_kept": 0.9, "max_utility_loss": 0.2}, True, -0.1),
    ],
)
def test_the_worst_change_is_what_the_stricter_limit_allows(
    pipeline: PipelineConfig, limits: dict[str, float | None], higher_is_better: bool, expected: float
) -> None:
    config = pipeline.model_copy(update={"tuning": pipeline.tuning.model_copy(update=limits)})
    direction = {"higher_is_better": higher_is_better}
    utility = FINE_TUNED.utility.model_copy(update=direction)
    fine_tuned = FINE_TUNED.model_copy(update={"utility": utility})
    found = recorded(config, {"a": [report("c", 0.5)]}, {"a": Fate.MISSED}, fine_tuned=fine_tuned)
    assert found.worst_change == pytest.approx(expected)
    assert found.higher_is_better is higher_is_better


def test_a_gain_that_is_not_known_asks_nothing(pipeline: PipelineConfig) -> None:
    candidates = {"a": [report("c", 0.5)]}
    found = recorded(pipeline, candidates, {"a": Fate.MISSED}, aligned=report(None))
    assert found.worst_change is None
    assert found.references == {"aligned": None, "fine_tuned": pytest.approx(1.095)}
    assert found.candidates[0].gain_kept is None


def test_what_was_not_asked_has_no_rate(pipeline: PipelineConfig) -> None:
    polite = report("c", suites={"polite": {"0": True, "1": False}})
    found = recorded(
        pipeline,
        {"dropped": [report("c", 0.5)], "polite": [report("c", 0.5), polite]},
        {"dropped": Fate.MISSED, "polite": Fate.MISSED},
    )
    of = {candidate.name: candidate for candidate in found.candidates}
    assert (of["dropped"].rounds, of["dropped"].harmful, of["dropped"].over_refusal) == (0, None, {})
    assert of["polite"].harmful is None
    assert {name: rate.value for name, rate in of["polite"].over_refusal.items()} == {"polite": 0.5}
    assert of["dropped"].utility == pytest.approx(0.595)
    assert of["dropped"].utility_change.value == pytest.approx(-0.5)
    assert of["dropped"].gain_kept.value == pytest.approx(0.5)


def test_a_utility_without_scores_of_documents_is_compared_with_none(pipeline: PipelineConfig) -> None:
    def whole(one: EvaluationReport) -> EvaluationReport:
        return one.model_copy(update={"utility": one.utility.model_copy(update={"scores": {}})})

    reports = {"a": [whole(report("c", 0.5))]}
    record = recorded(pipeline, reports, {"a": Fate.MISSED}, whole(ALIGNED), whole(FINE_TUNED))
    (found,) = record.candidates
    assert found.utility == pytest.approx(0.595)
    assert (found.utility_change, found.gain_kept) == (None, None)


def test_figures_of_arms_on_the_final_split() -> None:
    others = {"aligned": ALIGNED, "fine_tuned": FINE_TUNED}
    suites = {"harm": {"0": True, "1": False}, "polite": {"0": False, "1": False}}
    full = arm_figures("best", report("c", 0.5, suites), others)
    assert (full.harmful.value, full.over_refusal["polite"].value) == (0.5, 0.0)
    assert full.gain_kept.value == pytest.approx(0.5)
    assert full.utility_interval.low < full.utility < full.utility_interval.high
    # The aligned model has no adapter that could keep a gain.
    assert arm_figures("aligned", report(None, 0.0, suites), others).gain_kept is None
    bare = arm_figures("best", report("c", suites=suites), others)
    assert (bare.utility, bare.utility_interval, bare.gain_kept) == (None, None, None)
