"""What the templates show, from records of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import quote

from safemerge.arms import ALIGNED, ARM_TITLES, CANDIDATE, FINE_TUNED
from safemerge.records import Interval, SuiteKind, Verdict
from safemerge.tracking.figures import ArmFigures, SuiteFigure, UtilityFigure
from safemerge_airflow import OPEN_RUN_TASK
from safemerge_airflow.page import airflow_path
from safemerge_airflow.page.history import PIPELINE_NAME
from safemerge_airflow.page.records import ModelVersion, PipelineRun
from safemerge_airflow.page.unopened import UnopenedRun

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
    note: str = ""
    """What a reader must know of it."""

    @property
    def says(self) -> str:
        """Word and note as one text."""
        return f"{self.word} ({self.note})" if self.note else self.word


PASS = Outcome("pass", "✓", "pass")
BLOCK = Outcome("block", "✕", "block")
CANNOT_TELL = Outcome("cannot tell", "?", "ask")
RUNNING = Outcome("running", "…", "running")
WAITING = Outcome("waits for a person", "!", "ask")
NO_VERDICT = Outcome("no verdict", "–", "none")
FAILED_TO_START = Outcome("failed to start", "✕", "block")


class Pipeline(NamedTuple):
    """One pipeline in the overview."""

    name: str
    has_page: bool
    latest: PipelineRun | None
    """Its newest run with a verdict, or its newest where none has one; None where MLflow holds no run."""
    failed_start: UnopenedRun | None
    """The newest run, where that failed at its first task."""
    why: str
    """What kept its latest verdict from being a pass; empty where that is one, or there is none."""
    underway: Outcome | None
    """Where its newest run stands, if that has not ended."""
    outcomes: Sequence[Outcome]
    """Of its newest runs, the newest last."""
    harm: tuple[str, Figure] | None
    """Suite with the highest harmful rate in the latest verdict, and that rate."""
    utility: tuple[str, Figure] | None
    champion: str | None
    """Version that is the champion now."""


class Figure(NamedTuple):
    """A figure with its interval."""

    value: float | None
    interval: Interval | None
    is_share: bool
    """Whether it is a rate; other figures are in their metric's own unit."""
    asked: str = ""
    """How many prompts it rests on, of how many; empty for utility."""

    def words(self, value: float | None) -> str:
        """The figure, or an end of its interval, as people read it."""
        return in_words(value, self.is_share)


class Row(NamedTuple):
    """One run in a table."""

    run: PipelineRun
    outcome: Outcome
    harm: tuple[str, Figure] | None
    """Suite with the highest harmful rate, and that rate."""
    utility: tuple[str, Figure] | None


class Arm(NamedTuple):
    """One arm's figures, in the order of the table's columns."""

    name: str
    figures: Mapping[str, Figure]


def pipelines(
    runs: Sequence[PipelineRun], champions: Mapping[str, str], unopened: Sequence[UnopenedRun]
) -> list[Pipeline]:
    """The pipelines that runs belong to, by name; runs of both kinds are given the newest first."""
    found = by_pipeline(unopened, runs)
    begun = _begun(runs, (one for ones in found.values() for one in ones if one.failed))
    by_name: dict[str, list[PipelineRun]] = {}
    for run in begun:
        by_name.setdefault(run.pipeline, []).append(run)
    failed = {
        name: newest
        for name, (newest, *_) in found.items()
        if newest.failed and newest.ended_ms > _last_start_ms(name, newest.dag_id, begun)
    }
    return [
        _pipeline(name, by_name.get(name, ()), champions, failed.get(name))
        for name in sorted(by_name.keys() | failed.keys())
    ]


def by_pipeline(unopened: Iterable[UnopenedRun], runs: Sequence[PipelineRun]) -> dict[str, list[UnopenedRun]]:
    """Runs without a record whose end is the newest event of their key, by the pipeline they would be of.

    MLflow may have a record of that key: one of an earlier run, or one that the first task made before it
    failed. Else the pipeline is the one that all of the DAG's records in ``runs`` are of. Where there are
    none, or several pipelines, it is called as the DAG: a recipe's DAG has its pipeline's name.
    """
    made: dict[str, set[str]] = {}
    for run in runs:
        made.setdefault(run.dag_id, set()).add(run.pipeline)
    # The one that something happened to last, where inputs changed.
    records = {run.run_key: run for run in sorted(runs, key=lambda run: run.last_event_ms)}
    found: dict[str, list[UnopenedRun]] = {}
    for one in unopened:
        record = records.get(one.run_key)
        if record is None or one.ended_ms > record.last_event_ms:
            names = {record.pipeline} if record else made.get(one.dag_id, set())
            found.setdefault(min(names) if len(names) == 1 else one.dag_id, []).append(one)
    return found


def rows(runs: Iterable[PipelineRun], failed: Iterable[UnopenedRun]) -> list[Row | UnopenedRun]:
    """One pipeline's runs, and those of it that failed to start, the newest first."""
    failed = list(failed)
    return sorted(
        [*map(row, _begun(runs, failed)), *failed],
        key=lambda one: one.ended_ms if isinstance(one, UnopenedRun) else one.run.started_ms,
        reverse=True,
    )


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


def _begun(runs: Iterable[PipelineRun], failed: Iterable[UnopenedRun]) -> list[PipelineRun]:
    """The runs without those that failed to start; MLflow may say of such a one that it is running."""
    keys = {one.run_key for one in failed}
    return [run for run in runs if run.verdict or run.run_key not in keys]


def _pipeline(
    name: str,
    runs: Sequence[PipelineRun],
    champions: Mapping[str, str],
    failed_start: UnopenedRun | None,
) -> Pipeline:
    latest = next((run for run in runs if run.verdict), runs[0] if runs else None)
    figures = row(latest) if latest else None
    now = outcome(runs[0]) if runs else None
    return Pipeline(
        name=name,
        has_page=has_page(name),
        latest=latest,
        failed_start=failed_start,
        why=_why(latest) if latest else "",
        underway=now if now in (RUNNING, WAITING) else None,
        outcomes=[outcome(run) for run in reversed(runs[:STRIP])],
        harm=figures and figures.harm,
        utility=figures and figures.utility,
        champion=champions.get(latest.registered_model or "") if latest else None,
    )


def _why(run: PipelineRun) -> str:
    """The summary without verdict and arm, with which it begins: they need no room in one short line."""
    return "" if run.verdict is Verdict.PASS else run.summary.split(": ", 2)[-1]


def _last_start_ms(pipeline: str, dag_id: str, runs: Sequence[PipelineRun]) -> int:
    """When a recorded run of a pipeline or a DAG was started last; 0 where there is none."""
    starts = (run.last_started_ms for run in runs if run.pipeline == pipeline or run.dag_id == dag_id)
    return max(starts, default=0)


def outcome(run: PipelineRun) -> Outcome:
    """How a run came out. One that runs again has no verdict until it ends."""
    if run.sign_off == "waiting":
        return WAITING
    if run.status in ("RUNNING", "SCHEDULED"):
        return RUNNING
    return of_verdict(run)


def of_verdict(told: PipelineRun | ModelVersion) -> Outcome:
    """The verdict in words, a smoke judge's called so; none where a run failed before it came to one."""
    said = {Verdict.PASS: PASS, Verdict.BLOCK: BLOCK, Verdict.CANNOT_TELL: CANNOT_TELL, None: NO_VERDICT}
    return said[told.verdict]._replace(note="smoke judge" if told.by_smoke_judge else "")


def highest_harm(arm: ArmFigures) -> tuple[str, Figure] | None:
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


def log(run: UnopenedRun) -> str:
    """Where Airflow shows the log of the task that opened no record."""
    return airflow_path(f"/dags/{quoted(run.dag_id)}/runs/{quoted(run.run_id)}/tasks/{OPEN_RUN_TASK}")


def plain(pipeline: Pipeline) -> dict[str, Any]:
    """A pipeline of the overview as plain data."""
    run, failed = pipeline.latest, pipeline.failed_start
    return {
        "pipeline": pipeline.name,
        "verdict": run and run.verdict,
        "summary": run and run.summary,
        "run_id": run and run.run_id,
        "run_key": run and run.run_key,
        "ended": run and iso(run.ended_ms),
        "failed_start": failed
        and {"run_key": failed.run_key, "ended": iso(failed.ended_ms), "log": log(failed)},
        "underway": pipeline.underway.word if pipeline.underway else None,
        "outcomes": [outcome.word for outcome in pipeline.outcomes],
        "champion": pipeline.champion,
        "figures": {name: arm.model_dump(mode="json") for name, arm in (run.arms if run else {}).items()},
    }


# --- words -----------------------------------------------------------------------


def in_words(value: float | None, is_share: bool) -> str:
    """A share in percent; anything else, such as a perplexity or a log-probability, as it is."""
    if value is None:
        return "not measured"
    return f"{100 * value:.1f} %" if is_share else f"{value:.4g}"


def rate(figure: SuiteFigure) -> Figure:
    """The rate of a suite, harmful or over-refusal: always a share."""
    stopped = f" of {figure.planned}, stopped early" if figure.planned else ""
    asked = "" if figure.rate is None else f"n={figure.n}{stopped}"
    return Figure(figure.rate, figure.interval, is_share=True, asked=asked)


def score(figure: UtilityFigure) -> Figure:
    """What a utility metric says, which may be a share or not: always as the metric has it."""
    return Figure(figure.value, figure.interval, is_share=False)


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


def _utility(figure: UtilityFigure) -> tuple[str, Figure]:
    return f"{figure.task} {figure.metric}", score(figure)


def _figures(arm: ArmFigures) -> dict[str, Figure]:
    words = {SuiteKind.HARMFUL: "harmful", SuiteKind.OVER_REFUSAL: "over-refusal"}
    figures = {f"{suite}, {words[figure.kind]}": rate(figure) for suite, figure in arm.suites.items()}
    return figures | (dict([_utility(arm.utility)]) if arm.utility else {})
