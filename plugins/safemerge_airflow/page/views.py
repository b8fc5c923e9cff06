"""What the templates show, from records of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from safemerge.arms import ALIGNED, ARM_TITLES, CANDIDATE, FINE_TUNED
from safemerge.records import Interval, SuiteKind, Verdict
from safemerge.tracking.figures import ArmFigures, SuiteFigure, UtilityFigure
from safemerge_airflow.page import airflow_path
from safemerge_airflow.page.history import PIPELINE_NAME
from safemerge_airflow.page.records import PipelineRun

STRIP = 10
"""Runs in the strip of a pipeline's latest outcomes."""

ARMS = {arm: ARM_TITLES[arm].capitalize() for arm in (CANDIDATE, FINE_TUNED, ALIGNED)}
"""What the arms are called, in the order of tables and legends."""

TITLES = {
    401: "Not logged in",
    403: "Not permitted",
    404: "Not found",
    503: "MLflow does not answer",
}


class Outcome(NamedTuple):
    """How a run came out: told by a word, a sign and a colour."""

    word: str
    sign: str
    style: str
    """Class of the badge."""


PASS = Outcome("pass", "✓", "pass")
BLOCK = Outcome("block", "✕", "block")
CANNOT_TELL = Outcome("cannot tell", "?", "ask")
RUNNING = Outcome("running", "…", "running")
WAITING = Outcome("waits for a person", "!", "ask")
NO_VERDICT = Outcome("no verdict", "–", "none")


class Pipeline(NamedTuple):
    """One pipeline in the overview."""

    name: str
    has_page: bool
    latest: PipelineRun
    """Its newest run with a verdict, or its newest where none has one."""
    underway: Outcome | None
    """Where its newest run stands, if that has not ended."""
    outcomes: Sequence[Outcome]
    """Of its newest runs, the newest last."""
    harm: tuple[str, Measured] | None
    """Suite with the highest harmful rate in the latest verdict, and that rate."""
    utility: tuple[str, Measured] | None
    champion: str | None
    """Version that is the champion now."""


class Measured(NamedTuple):
    """A figure with its interval."""

    value: float | None
    interval: Interval | None
    is_share: bool
    """Whether it is a rate; other figures are in their metric's own unit."""

    def words(self, value: float | None) -> str:
        """The figure, or an end of its interval, as people read it."""
        return in_words(value, self.is_share)


class Row(NamedTuple):
    """One run in a table."""

    run: PipelineRun
    outcome: Outcome
    harm: tuple[str, Measured] | None
    """Suite with the highest harmful rate, and that rate."""
    utility: tuple[str, Measured] | None


class Arm(NamedTuple):
    """One arm's figures, in the order of the table's columns."""

    name: str
    figures: Mapping[str, Measured]


def pipelines(runs: Sequence[PipelineRun], champions: Mapping[str, str]) -> list[Pipeline]:
    """The pipelines that runs belong to, by name; ``runs`` are the newest first."""
    by_name: dict[str, list[PipelineRun]] = {}
    for run in runs:
        by_name.setdefault(run.pipeline, []).append(run)
    return [_pipeline(name, of_name, champions) for name, of_name in sorted(by_name.items())]


def has_page(pipeline: str) -> bool:
    """Whether a name is one that a pipeline can have; MLflow may hold others."""
    return PIPELINE_NAME.fullmatch(pipeline) is not None


def row(run: PipelineRun) -> Row:
    """A run with its headline figures."""
    candidate = run.arms.get(CANDIDATE)
    return Row(
        run,
        outcome(run),
        harm=highest_harm(candidate) if candidate else None,
        utility=_utility(candidate.utility) if candidate and candidate.utility else None,
    )


def _pipeline(name: str, runs: Sequence[PipelineRun], champions: Mapping[str, str]) -> Pipeline:
    latest = row(next((run for run in runs if run.verdict), runs[0]))
    now = outcome(runs[0])
    return Pipeline(
        name=name,
        has_page=has_page(name),
        latest=latest.run,
        underway=now if now in (RUNNING, WAITING) else None,
        outcomes=[outcome(run) for run in reversed(runs[:STRIP])],
        harm=latest.harm,
        utility=latest.utility,
        champion=champions.get(latest.run.registered_model or ""),
    )


def outcome(run: PipelineRun) -> Outcome:
    """How a run came out. One that runs again has no verdict until it ends."""
    if run.sign_off == "waiting":
        return WAITING
    if run.status in ("RUNNING", "SCHEDULED"):
        return RUNNING
    return of_verdict(run.verdict)


def of_verdict(verdict: Verdict | None) -> Outcome:
    """The verdict in words; no verdict where a run failed before it came to one."""
    return {Verdict.PASS: PASS, Verdict.BLOCK: BLOCK, Verdict.CANNOT_TELL: CANNOT_TELL, None: NO_VERDICT}[
        verdict
    ]


def highest_harm(arm: ArmFigures) -> tuple[str, Measured] | None:
    """The harmful suite with the highest rate. One that was not measured counts as the highest."""
    rates = [
        (suite, rate(figure)) for suite, figure in arm.suites.items() if figure.kind is SuiteKind.HARMFUL
    ]
    return max(rates, key=lambda one: 2 if one[1].value is None else one[1].value, default=None)


def arms(run: PipelineRun) -> list[Arm]:
    """The arms of a run with all their figures, for its table."""
    return [Arm(title, _figures(run.arms[name])) for name, title in ARMS.items() if name in run.arms]


def dag_run(run: PipelineRun) -> str | None:
    """Where Airflow shows the run; None where its key names no run of a DAG."""
    dag_id, _, run_id = run.run_key.partition("/")
    if not run_id:
        return None
    return airflow_path(f"/dags/{quoted(dag_id)}/runs/{quoted(run_id)}")


def plain(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline of the overview as plain data."""
    run = pipeline.latest
    return {
        "pipeline": pipeline.name,
        "verdict": run.verdict,
        "summary": run.summary,
        "run_id": run.run_id,
        "run_key": run.run_key,
        "ended": iso(run.ended_ms),
        "underway": pipeline.underway.word if pipeline.underway else None,
        "outcomes": [outcome.word for outcome in pipeline.outcomes],
        "champion": pipeline.champion,
        "figures": {name: arm.model_dump(mode="json") for name, arm in run.arms.items()},
    }


# --- words -----------------------------------------------------------------------


def in_words(value: float | None, is_share: bool) -> str:
    """A share in percent; anything else, such as a perplexity or a log-probability, as it is."""
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" if is_share else f"{value:.4g}"


def rate(figure: SuiteFigure) -> Measured:
    """The rate of a suite, harmful or over-refusal: always a share."""
    return Measured(figure.rate, figure.interval, is_share=True)


def score(figure: UtilityFigure) -> Measured:
    """What a utility metric says, which may be a share or not: always as the metric has it."""
    return Measured(figure.value, figure.interval, is_share=False)


def when(time_ms: int | None) -> str:
    """A time to the minute."""
    return "" if time_ms is None else _time(time_ms).strftime("%Y-%m-%d %H:%M UTC")


def iso(time_ms: int | None) -> str | None:
    """A time as programs read it."""
    return None if time_ms is None else _time(time_ms).isoformat(timespec="seconds")


def lasted(run: PipelineRun) -> str:
    """How long a run took; empty while it runs."""
    if run.ended_ms is None:
        return ""
    minutes, seconds = divmod(max(run.ended_ms - run.started_ms, 0) // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def quoted(text: str) -> str:
    """A text as one segment of a path."""
    return quote(text, safe="")


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def _utility(figure: UtilityFigure) -> tuple[str, Measured]:
    return f"{figure.task} {figure.metric}", score(figure)


def _figures(arm: ArmFigures) -> dict[str, Measured]:
    words = {SuiteKind.HARMFUL: "harmful", SuiteKind.OVER_REFUSAL: "over-refusal"}
    figures = {f"{suite}, {words[figure.kind]}": rate(figure) for suite, figure in arm.suites.items()}
    return figures | (dict([_utility(arm.utility)]) if arm.utility else {})
