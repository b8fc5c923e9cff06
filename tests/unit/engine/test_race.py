"""Races replayed from reports: what is measured next, and what becomes of whom."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safemerge.config.evaluation import EvaluationConfig
from safemerge.engine.race import (
    MIN_DOCUMENTS,
    Race,
    Reports,
    check_unseen,
    last_scored,
    missed_rules,
    read_split,
    round_settings,
    round_sizes,
    scorings,
    tuning_of,
)
from safemerge.errors import ConfigError
from safemerge.evaluation.suites import read_suite
from safemerge.reports.tuning import Fate
from safemerge.stats import mean_difference
from tests.unit.engine.races import Judge, report


def test_rounds_ask_prefixes_of_one_drawn_order_and_no_prompt_twice(tuning) -> None:
    evaluation = EvaluationConfig.model_validate(
        {"utility": {"task": "final", "metric": "acc"}, "suites": [s.model_dump() for s in tuning.suites]}
    )
    sizes = {suite.name: len(suite.prompts) for suite in read_split(tuning)}
    assert round_sizes(tuning, sizes) == [
        {"harm": 2, "polite": 1},
        {"harm": 5, "polite": 2},
        {"harm": 10, "polite": 4},
    ]
    asked: dict[str, list[str]] = {"harm": [], "polite": []}
    for number in (1, 2, 3):
        for suite in map(read_suite, round_settings(evaluation, tuning, sizes, number).suites):
            asked[suite.name] += [prompt.id for prompt in suite.prompts]
    whole = {suite.name: [prompt.id for prompt in suite.prompts] for suite in read_split(tuning)}
    assert asked == whole
    assert whole["harm"] != sorted(whole["harm"])
    other = read_split(tuning.model_copy(update={"seed": 1}))[0].prompts
    assert [prompt.id for prompt in other] != whole["harm"]


def test_a_race_measures_those_left_and_ends_with_the_least_harm(tuning) -> None:
    judge = Judge(tuning, {"a": 9, "b": 8, "c": 1, "d": 2, "e": 0}, {"e": 0.5})
    reports, stage = judge.run()
    # e forgets the task; of four, two go on, of two one.
    assert judge.asked == [
        (0, ("a", "b", "c", "d", "e")),
        (1, ("a", "b", "c", "d")),
        (2, ("c", "a")),
        (3, ("c",)),
    ]
    assert stage.chosen == "c"
    assert {name: ending.fate for name, ending in stage.fates.items()} == {
        "a": Fate.OUTRANKED,
        "b": Fate.OUTRANKED,
        "c": Fate.CHOSEN,
        "d": Fate.OUTRANKED,
        "e": Fate.MISSED,
    }
    assert stage.fates["e"].reason.startswith("gain kept 50.0 % (95 % interval 50.0–50.0 %) on dev/acc")
    assert len(reports.candidates["c"]) == 4
    assert judge.race.most_prompts(1, 4) == 4 * 3 + 2 * 4 + 1 * 7
    assert judge.race.most_prompts(0, 4) == judge.race.most_prompts(1, 4)
    assert judge.race.most_prompts(3, 2) == 2 * 7


def test_documents_are_scored_in_part_first_and_in_full_for_the_last_round(tuning) -> None:
    limited = tuning.model_copy(
        update={"utility": tuning.utility.model_copy(update={"limit": 100}), "min_gain_kept": 0.9}
    )
    assert scorings(limited) == {0: 20, 3: 100}
    assert scorings(limited.model_copy(update={"rungs": ()})) == {0: 100}
    few = limited.model_copy(update={"utility": tuning.utility.model_copy(update={"limit": 20})})
    assert scorings(few) == {0: 8, 3: 20}
    assert scorings(tuning) == {0: None}  # how many there are is not known
    judge = Judge(limited, {"a": 0, "b": 1, "c": 2}, {"a": 0.85})
    asked = []
    judge.scored = lambda name, limit: asked.append((name, limit))
    _, stage = judge.run()
    # On 20 documents a is shown to keep too little: it is asked no prompt.
    assert stage.fates["a"].fate is Fate.MISSED
    assert (judge.asked[1], stage.chosen) == ((1, ("b", "c")), "b")
    assert asked == [("a", 20), ("b", 20), ("c", 20), ("b", 100)]


def test_a_candidate_whose_part_of_the_documents_leaves_it_open_goes_on(tuning) -> None:
    limited = tuning.model_copy(update={"utility": tuning.utility.model_copy(update={"limit": 100})})
    race = Race(limited, {"a": 3}, read_split(limited))
    # 85 % of the gain is kept on average, too little; document by document between 45 and 125 %.
    found = report("a", 0.85, spread=0.4)
    standing = race.standing("a", [found], Reports(report(None, 0.0), report("f", 1.0), {"a": [found]}))
    assert standing.inferior.startswith("gain kept 85.0 % (95 % interval 6")
    assert standing.unsure
    # On all documents the same figure decides.
    whole = Reports(report(None, 0.0), report("f", 1.0), {"a": [found] * 4})
    assert not race.standing("a", [found] * 4, whole).unsure


def test_a_part_of_the_documents_is_held_against_the_same_of_the_references(tuning) -> None:
    part, whole = report("a", 0.85), report("f", 1.0)
    few = {document: part.utility.scores[document] for document in ("0", "1", "2", "3")}
    utility = part.utility.model_copy(
        update={"scores": few, "value": 0.865, "task_digest": "part", "protocol": {"limit": 4}}
    )
    part = part.model_copy(update={"utility": utility})
    scored = last_scored([part, report("a")], Reports(report(None, 0.0), whole, {}))
    assert scored.candidate is part
    for reference, mean in ((scored.aligned, 0.015), (scored.fine_tuned, 1.015)):
        assert reference.utility.scores.keys() == few.keys()
        assert reference.utility.value == pytest.approx(mean)
    assert missed_rules(tuning, scored)[0].explanation.startswith("gain kept 85.0 %")
    assert last_scored([whole], Reports(whole, whole, {})).aligned is whole
    # A task may have fewer documents than its limit: both were then scored on all there are.
    all_of_it = whole.model_copy(
        update={"utility": whole.utility.model_copy(update={"protocol": {"limit": 40}})}
    )
    assert missed_rules(tuning, last_scored([all_of_it], Reports(report(None, 0.0), whole, {}))) == []


def test_few_documents_drop_one_that_keeps_the_limit_just_so_in_6_of_100() -> None:
    """What MIN_DOCUMENTS says, by simulation: normal differences whose mean is the margin."""
    drawn = np.random.default_rng(0).normal(0.1, 1.0, size=(1000, MIN_DOCUMENTS))
    none = dict.fromkeys(map(str, range(MIN_DOCUMENTS)), 0.0)
    ends = [mean_difference(dict(zip(none, row, strict=True)), none).interval.high for row in drawn]
    # 1,000 draws: twice the standard error of 6 % is 1.5 points.
    assert np.mean(np.array(ends) < 0.1) == pytest.approx(0.06, abs=0.015)


def test_a_race_goes_on_from_whatever_reports_there_are(tuning) -> None:
    judge = Judge(tuning, {"a": 9, "b": 0}, {})
    reports, stage = judge.run()
    cut = Reports(
        reports.aligned, reports.fine_tuned, {name: found[:2] for name, found in reports.candidates.items()}
    )
    assert judge.race.stage(cut).round == 2
    assert judge.race.stage(reports) == stage


def test_a_race_that_all_lose_ends_without_asking_a_prompt(tuning) -> None:
    judge = Judge(tuning, {"a": 0, "b": 0}, {"a": 0.1, "b": -1.0})
    _, stage = judge.run()
    assert judge.asked == [(0, ("a", "b"))]
    assert stage.chosen is None
    assert {ending.fate for ending in stage.fates.values()} == {Fate.MISSED}


def test_a_margin_of_non_inferiority_is_taken_against_the_fine_tuned_adapter(tuning) -> None:
    margin = tuning.model_copy(update={"min_gain_kept": None, "max_utility_loss": 0.1})
    judge = Judge(margin, {"a": 3, "b": 0}, {"a": 0.95, "b": 0.85})
    _, stage = judge.run()
    assert stage.chosen == "a"
    assert "utility lost 0.15 (95 % interval 0.15 to 0.15) against fine_tuned" in stage.fates["b"].reason


def test_without_rungs_everyone_is_asked_everything(tuning) -> None:
    judge = Judge(tuning.model_copy(update={"rungs": ()}), {"a": 2, "b": 1}, {})
    _, stage = judge.run()
    assert [number for number, _ in judge.asked] == [0, 1]
    assert (stage.chosen, stage.fates["a"].fate) == ("b", Fate.KEPT_LIMITS)


def test_splits_that_share_a_prompt_are_refused(pipeline, tmp_path: Path) -> None:
    assert [suite.name for suite in check_unseen(pipeline)] == ["harm", "polite"]
    (tmp_path / "final.jsonl").write_text(json.dumps({"id": "f", "prompt": "do HARM  3!"}))
    with pytest.raises(ConfigError, match=r"got harm/harm3 = plain/f$"):
        check_unseen(pipeline)


def test_a_config_without_tuning_is_refused(pipeline) -> None:
    with pytest.raises(ConfigError, match="expected the section that tells how to choose a merge"):
        tuning_of(pipeline.model_copy(update={"tuning": None}))
