from __future__ import annotations

import pytest

from safemerge.records import SuiteKind
from safemerge.stats import wilson_interval
from safemerge.tracking import tags
from safemerge.tracking.figures import ArmFigures, RunFigures, SuiteFigure, run_figures
from tests.unit.plugins.page.fill import evaluation, stopped_early


def test_figures_of_a_report_round_trip_through_the_tag() -> None:
    measured = evaluation("safemerge", 7, 90, n=150)
    figures = run_figures({"candidate": measured})
    assert RunFigures.model_validate_json(figures.to_tag()) == figures
    arm = figures.arms["candidate"]
    assert list(arm.suites) == [suite.suite for suite in measured.suites]
    for suite in measured.suites:
        # Not rounded: else whoever shows them rounds twice, and to other figures than the report has.
        found = arm.suites[suite.suite]
        assert (found.rate, found.interval, found.n) == (suite.rate, suite.interval, suite.n)


def test_a_suite_that_was_stopped_early_says_how_many_prompts_it_has() -> None:
    figures = run_figures({"candidate": stopped_early(evaluation("safemerge", 7, 90, n=150), planned=400)})
    assert RunFigures.model_validate_json(figures.to_tag()) == figures
    suites = figures.arms["candidate"].suites
    assert (suites["harm"].n, suites["harm"].planned) == (150, 400)
    assert suites["plain"].planned is None


def test_a_tag_of_an_earlier_version_is_read() -> None:
    tag = (
        '{"arms":{"candidate":{"suites":{"harm":{"kind":"harmful","rate":0.04,'
        '"interval":{"low":0.0204,"high":0.0769},"n":200}},"utility":null}}}'
    )
    figure = RunFigures.model_validate_json(tag).arms["candidate"].suites["harm"]
    assert (figure.rate, figure.n, figure.planned) == (0.04, 200, None)
    assert RunFigures.model_validate_json(tag).to_tag() == tag  # what did not stop early costs no more room


def test_utility_has_an_interval_where_answers_are_right_or_wrong() -> None:
    exact = evaluation("safemerge", 1, 30, n=50)
    shown = run_figures({"candidate": exact}).arms["candidate"].utility
    assert (shown.value, shown.interval) == (30 / 50, wilson_interval(30, 50))
    for other in ({}, {"a": 0.5, "b": 1.0}):
        soft = exact.model_copy(update={"utility": exact.utility.model_copy(update={"scores": other})})
        assert run_figures({"candidate": soft}).arms["candidate"].utility.interval is None


def test_missing_figures_stay_missing() -> None:
    measured = evaluation("safemerge", 1, 1)
    nothing = measured.suites[0].model_copy(update={"flags": {}, "rate": None, "interval": None})
    unmeasured = measured.model_copy(update={"utility": None, "suites": (nothing,)})
    arm = run_figures({"candidate": unmeasured}).arms["candidate"]
    assert arm.utility is None
    assert (arm.suites["harm"].rate, arm.suites["harm"].interval) == (None, None)


@pytest.mark.parametrize(("suites", "kept"), [(1, 3), (30, 1), (90, 0)])
def test_what_does_not_fit_a_tag_is_left_out_the_candidate_last(suites: int, kept: int) -> None:
    figure = SuiteFigure(kind=SuiteKind.HARMFUL, rate=0.1234, interval=wilson_interval(1, 8), n=200)
    arm = ArmFigures(suites={f"suite {number}": figure for number in range(suites)}, utility=None)
    text = RunFigures(arms=dict.fromkeys(("aligned", "candidate", "fine_tuned"), arm)).to_tag()
    arms = RunFigures.model_validate_json(text).arms
    assert len(text) <= tags.MAX_CHARACTERS
    assert len(arms) == kept
    assert "candidate" in arms or not kept
