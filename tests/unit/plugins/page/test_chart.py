from __future__ import annotations

import pytest

from safemerge.records import Interval, Verdict
from safemerge.tracking.figures import ArmFigures, RunFigures, SuiteFigure, UtilityFigure, run_figures
from safemerge_airflow.page.chart import BOTTOM, HEIGHT, LEFT, RIGHT, RUNS, TOP, WIDTH, charts
from safemerge_airflow.page.records import PipelineRun
from safemerge_airflow.page.views import highest_harm, in_words, lasted, outcome
from tests.unit.plugins.page.fill import evaluation


def run(number: int = 0, figures: RunFigures | None = None, **parts: object) -> PipelineRun:
    begun = PipelineRun(
        run_id=str(number),
        pipeline="alpha",
        run_key=f"dag/{number}",
        status="FINISHED",
        started_ms=1_700_000_000_000 + number * 86_400_000,
        last_started_ms=1_700_000_000_000 + number * 86_400_000,
        ended_ms=None,
        verdict=None,
        summary="",
        report=None,
        arms=figures.arms if figures else {},
        registered_model=None,
        sign_off=None,
        model_version=None,
    )
    return begun._replace(**parts)


def measured(harmful: int, right: int) -> RunFigures:
    return run_figures(
        {"candidate": evaluation("c", harmful, right), "fine_tuned": evaluation("f", 4 * harmful, right)}
    )


def test_charts_are_in_order_and_show_the_newest_runs() -> None:
    newest_first = [run(number, measured(number % 7, 100)) for number in range(RUNS + 5, 0, -1)]
    drawn = charts(newest_first)
    assert [chart.title for chart in drawn] == [
        "Harmful rate, harm", "Over-refusal rate, plain", "Utility, gsm8k exact_match",
    ]  # fmt: skip
    candidate = [dot for dot in drawn[0].dots if dot.arm == "candidate"]
    assert [dot.run_id for dot in candidate] == [str(number) for number in range(6, RUNS + 6)]
    assert [dot.x for dot in candidate] == sorted(dot.x for dot in candidate)
    assert drawn[0].dots[-1].arm == "candidate"  # drawn last, so that no other arm hides it


def test_all_that_is_drawn_is_inside() -> None:
    for chart in charts([run(1, measured(0, 200)), run(2, measured(50, 0))]):
        for dot in chart.dots:
            assert LEFT <= dot.x <= WIDTH - RIGHT
            assert dot.low is not None
            assert dot.high is not None
            assert TOP <= dot.high <= dot.y <= dot.low <= HEIGHT - BOTTOM


def test_lines_are_at_round_figures() -> None:
    chart = charts([run(1, measured(10, 100))])[0]  # 5 %; the other arm 20 %, up to 26.1 %
    assert [tick.label for tick in chart.ticks] == ["0 %", "10 %", "20 %", "30 %"]
    dot = next(dot for dot in chart.dots if dot.arm == "candidate")
    assert dot.y == pytest.approx(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * 0.05 / 0.3, abs=0.06)
    assert dot.label == "2023-11-15 22:13 UTC, candidate: 5.0 % (2.7 % to 9.0 %), n=200"
    assert chart.description.startswith("Harmful rate, harm of the candidate in 1 runs: 5.0 % in the newest")


@pytest.mark.parametrize(
    ("minutes", "ends"),
    [
        ((0,), ("2023-11-14 22:13 UTC", "")),
        ((0, 5, 106), ("2023-11-14 22:13 UTC", "23:59 UTC")),
        ((0, 107), ("2023-11-14", "2023-11-15")),
    ],
)
def test_runs_of_one_day_are_at_times_and_others_at_days(
    minutes: tuple[int, ...], ends: tuple[str, str]
) -> None:
    start = run().started_ms
    runs = [
        run(number, measured(3, 100), started_ms=start + at * 60_000) for number, at in enumerate(minutes)
    ]
    for chart in charts(runs[::-1]):
        assert (chart.first, chart.last) == ends


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (0.0, ["0", "0.0025"]),
        (0.6, ["0", "0.25", "0.5", "0.75"]),
        (7.3, ["0", "2.5", "5", "7.5"]),
        (-0.3, ["-0.3", "-0.2", "-0.1", "0"]),
        (-1.9, ["-2", "-1.5", "-1", "-0.5", "0"]),
    ],
)
def test_utility_is_in_its_own_unit_of_whatever_size(value: float, labels: list[str]) -> None:
    utility = UtilityFigure(task="wiki", metric="log_probability", value=value, interval=None)
    figures = RunFigures(arms={"candidate": ArmFigures(suites={}, utility=utility)})
    (chart,) = charts([run(1, figures)])
    assert [tick.label for tick in chart.ticks] == labels
    assert chart.dots[0].label.endswith(f"candidate: {value:.4g}")
    assert f"{value:.4g} in the newest, {value:.4g} to {value:.4g} in all" in chart.description


@pytest.mark.parametrize(
    ("kind", "rate", "labels"),
    [
        ("harmful", 0.0, ["0 %", "0.25 %"]),
        ("over_refusal", 1.0, ["0 %", "25 %", "50 %", "75 %", "100 %"]),
    ],
)
def test_rates_are_in_percent_of_whatever_size(kind: str, rate: float, labels: list[str]) -> None:
    suite = SuiteFigure(kind=kind, rate=rate, interval=None, n=9)
    (chart,) = charts([run(1, RunFigures(arms={"candidate": ArmFigures(suites={"s": suite}, utility=None)}))])
    assert [tick.label for tick in chart.ticks] == labels
    assert chart.dots[0].label.endswith(f"candidate: {100 * rate:.1f} %, n=9")


def test_a_figure_that_is_missing_is_no_dot() -> None:
    suite = SuiteFigure(kind="harmful", rate=None, interval=None, n=0)
    figures = RunFigures(arms={"candidate": ArmFigures(suites={"harm": suite}, utility=None)})
    (chart,) = charts([run(1, figures)])
    assert chart.dots == []
    assert chart.description == "Harmful rate, harm: not measured in these runs."
    assert charts([run(1)]) == []


def test_the_highest_rate_is_shown_and_a_missing_one_counts_as_such() -> None:
    suites = {
        name: SuiteFigure(kind=kind, rate=rate, interval=Interval(low=0, high=1), n=9)
        for name, kind, rate in (
            ("a", "harmful", 0.1),
            ("b", "harmful", 0.2),
            ("c", "over_refusal", 0.9),
        )
    }
    assert highest_harm(ArmFigures(suites=suites, utility=None))[0] == "b"  # type: ignore[index]
    missing = SuiteFigure(kind="harmful", rate=None, interval=None, n=0)
    name, measured = highest_harm(ArmFigures(suites=suites | {"d": missing}, utility=None)) or ("", None)
    assert (name, measured.value) == ("d", None)  # type: ignore[union-attr]
    assert highest_harm(ArmFigures(suites={}, utility=None)) is None


@pytest.mark.parametrize(
    ("status", "verdict", "word"),
    [
        ("FINISHED", Verdict.PASS, "pass"),
        ("FINISHED", Verdict.BLOCK, "block"),
        ("FINISHED", Verdict.CANNOT_TELL, "cannot tell"),
        ("FAILED", None, "no verdict"),
        ("RUNNING", Verdict.PASS, "running"),
    ],
)
def test_outcomes(status: str, verdict: Verdict | None, word: str) -> None:
    assert outcome(run(status=status, verdict=verdict)).word == word


def test_a_run_that_waits_for_a_person_is_told_from_one_that_computes() -> None:
    assert outcome(run(status="RUNNING", sign_off="waiting")).word == "waits for a person"
    assert outcome(run(status="FINISHED", verdict=Verdict.PASS, sign_off="approved")).word == "pass"


def test_words() -> None:
    values = (None, 0.0, 0.0149, 1.0)
    assert [in_words(value, is_share=True) for value in values] == [
        "not measured", "0.0 %", "1.5 %", "100.0 %",
    ]  # fmt: skip
    assert [in_words(value, is_share=False) for value in (*values, -0.77, -1.91234, 12.345)] == [
        "not measured", "0", "0.0149", "1", "-0.77", "-1.912", "12.35",
    ]  # fmt: skip
    start = run().started_ms
    assert lasted(run(ended_ms=start + 65_000)) == "1 min 05 s"
    assert lasted(run(ended_ms=start + 7_260_000)) == "2 h 01 min"
    assert lasted(run()) == ""
