"""Which DAG runs opened no record, by queries of a database with Airflow's own tables."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from airflow.api.common.mark_tasks import set_dag_run_state_to_failed
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from sqlalchemy import create_engine, insert, select, update
from sqlalchemy.orm import Session

from safemerge_airflow.page.access import Readable
from safemerge_airflow.page.unopened import MOST, UnopenedRun, unopened_runs
from tests.unit.plugins.page.fill import add_dag, add_dag_run

NIGHT = datetime(2026, 11, 25, 2, 0, tzinfo=UTC)
NIGHT_MS = 1_795_572_000_000
TABLES = ("dag_bundle", "dag", "dag_tag", "dag_run", "log_template", "task_instance", "xcom")
LINK = "http://127.0.0.1:5000/#/runs/1"


@pytest.fixture
def session() -> Iterator[Session]:
    import_all_models()  # tables refer to others
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, [Base.metadata.tables[name] for name in TABLES])
    with Session(engine) as session:
        yield session
    engine.dispose()


def found(session: Session, *dag_ids: str) -> list[str]:
    readable = Readable(frozenset(dag_ids), all_dags=False)
    return [run.run_key for run in unopened_runs(readable, session)]


def test_a_run_that_failed_at_its_first_task_is_found_and_one_that_was_skipped_told_from_it(
    session: Session,
) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", "failed", NIGHT)
    add_dag_run(session, "alpha/2", "skipped", NIGHT + timedelta(days=1), link=LINK)
    assert unopened_runs(Readable(frozenset({"alpha"}), all_dags=True), session) == [
        UnopenedRun("alpha", "2", NIGHT_MS + 86_400_000, failed=False),
        UnopenedRun("alpha", "1", NIGHT_MS, failed=True),
    ]


def test_a_task_that_the_scheduler_failed_without_an_end_is_found(session: Session) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", "scheduled", NIGHT)
    session.execute(update(TaskInstance).values(state="failed", end_date=None, updated_at=NIGHT))
    (run,) = unopened_runs(Readable(frozenset({"alpha"}), all_dags=True), session)
    assert (run.ended_ms, run.failed) == (NIGHT_MS, True)


@pytest.mark.parametrize(
    ("conf", "run_key"),
    [
        ({"run_key": "nightly\u202e"}, "nightly\ufffd"),
        ({"run_key": None}, "alpha/1"),
        ({"run_key": ""}, "alpha/1"),
        ({"run_key": ["nightly"]}, "alpha/1"),
        ({}, "alpha/1"),
        (None, "alpha/1"),
        (["run_key"], "alpha/1"),
    ],
)
def test_a_run_is_called_as_it_was_told(session: Session, conf: object, run_key: str) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", "failed", NIGHT, conf=conf)
    (run,) = unopened_runs(Readable(frozenset({"alpha"}), all_dags=True), session)
    assert (run.run_key, run.dag_id, run.run_id) == (run_key, "alpha", "1")


@pytest.mark.parametrize(("state", "link"), [("up_for_retry", ""), ("queued", None), (None, None)])
def test_a_run_that_a_person_marked_failed_is_no_run_without_news(
    session: Session, state: str | None, link: str | None
) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", state, NIGHT, link=link)
    teardown = {"task_id": "close_run", "pool": "default_pool"}
    session.execute(insert(TaskInstance).values(dag_id="alpha", run_id="1", **teardown))
    session.execute(update(DagRun).values(state="running"))
    with DAG("alpha") as dag:
        EmptyOperator(task_id="open_run") >> EmptyOperator(task_id="close_run").as_teardown()
    set_dag_run_state_to_failed(dag=dag, run_id="1", commit=True, session=session)
    tasks = dict(session.execute(select(TaskInstance.task_id, TaskInstance.state)).all())
    assert tasks == {"open_run": "skipped", "close_run": None}
    # Nor does the run's own state tell: Airflow waits for close_run, and then finds that nothing failed.
    assert session.scalar(select(DagRun.state)) == "running"
    (run,) = unopened_runs(Readable(frozenset({"alpha"}), all_dags=True), session)
    assert (run.run_key, run.failed) == ("alpha/1", True)


def test_a_run_that_took_too_long_is_no_run_without_news(session: Session) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", "skipped", NIGHT)
    # The scheduler ends all that was left of it so, without noting an end.
    session.execute(update(TaskInstance).values(end_date=None, updated_at=NIGHT))
    (run,) = unopened_runs(Readable(frozenset({"alpha"}), all_dags=True), session)
    assert (run.ended_ms, run.failed) == (NIGHT_MS, True)


def test_a_task_that_ended_nobody_knows_when_breaks_nothing(session: Session) -> None:
    add_dag(session, "alpha")
    for number in (1, 2):
        add_dag_run(session, f"alpha/{number}", "failed", NIGHT)
    of_first = TaskInstance.run_id == "1"
    session.execute(update(TaskInstance).where(of_first).values(end_date=None, updated_at=None))
    assert found(session, "alpha") == ["alpha/2"]


@pytest.mark.parametrize("state", ["success", "running", "up_for_retry", "queued", "upstream_failed", None])
def test_other_ends_are_none(session: Session, state: str | None) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", state, NIGHT)
    assert found(session, "alpha") == []


def test_a_run_that_was_cleared_and_opened_its_record_is_none_any_more(session: Session) -> None:
    add_dag(session, "alpha")
    add_dag_run(session, "alpha/1", "failed", NIGHT)
    assert found(session, "alpha") == ["alpha/1"]
    session.execute(update(TaskInstance).values(state=None, end_date=None))
    assert found(session, "alpha") == []
    session.execute(update(TaskInstance).values(state="success", end_date=NIGHT + timedelta(hours=7)))
    assert found(session, "alpha") == []


def test_only_first_tasks_of_pipelines_that_are_there_and_that_the_user_may_see(session: Session) -> None:
    add_dag(session, "alpha")
    add_dag(session, "secret")
    add_dag(session, "gone", is_stale=True)
    add_dag(session, "other", tag="reports")
    for dag_id in ("alpha", "secret", "gone", "other"):
        add_dag_run(session, f"{dag_id}/1", "failed", NIGHT)
    add_dag_run(session, "alpha/2", "failed", NIGHT, task_id="gate")
    assert found(session, "alpha", "gone", "other") == ["alpha/1"]
    assert found(session) == []


def test_a_dag_that_fails_all_the_time_hides_no_other(session: Session) -> None:
    add_dag(session, "alpha")
    add_dag(session, "beta")
    add_dag_run(session, "beta/1", "failed", NIGHT)
    for number in range(MOST + 5):
        add_dag_run(session, f"alpha/{number}", "failed", NIGHT + timedelta(minutes=number))
        add_dag_run(session, f"alpha/s{number}", "skipped", NIGHT + timedelta(days=1, minutes=number))
    runs = found(session, "alpha", "beta")
    assert runs[-1] == "beta/1"
    assert len(runs) == 2 * MOST + 1
    assert runs[MOST:-1] == [f"alpha/{number}" for number in range(MOST + 4, 4, -1)]
