"""DAG runs whose first task opened no record in MLflow, or failed as it did: from Airflow's database."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dag import DagModel, DagTag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.state import TaskInstanceState
from fastapi import Depends
from sqlalchemy import and_, func, select

from safemerge.records import printable
from safemerge_airflow import OPEN_RUN_TASK, TAG
from safemerge_airflow.mlflow_link import MlflowRunLink
from safemerge_airflow.page.access import ReadableDags

MOST = 20
"""Runs of each DAG that failed so, and as many that were skipped: one DAG does not push out the others."""


class UnopenedRun(NamedTuple):
    """A DAG run whose first task ended without a record."""

    dag_id: str
    run_id: str
    ended_ms: int
    """When that task ended."""
    failed: bool
    """False where it found nothing new to do, and was skipped."""
    given_key: str | None = None
    """The name that the run was told to have in MLflow; text of a user's."""

    @property
    def run_key(self) -> str:
        """What the run would be called in MLflow."""
        return self.given_key or f"{self.dag_id}/{self.run_id}"


def unopened_runs(readable: ReadableDags, session: SessionDep) -> list[UnopenedRun]:
    """Dependency: those of DAGs that are there and that the user may see, the newest first.

    A task that is started again has its new state: a run that opened its record after all is none of them.

    Airflow also skips tasks that still wait, perhaps for a retry, where a run is marked failed or takes too
    long; and as ``close_run`` comes after them, a run marked failed so may end as a success. Only a task that
    found nothing new leads to the MLflow run that has what it would have made.
    """
    task, states = TaskInstance, (TaskInstanceState.FAILED, TaskInstanceState.SKIPPED)
    # The scheduler fails tasks of a DAG that it does not find without noting an end.
    ended_at = func.coalesce(task.end_date, task.updated_at)
    place = func.row_number().over(partition_by=(task.dag_id, task.state), order_by=ended_at.desc())
    ended = (
        select(task.dag_id, task.run_id, task.state, ended_at.label("ended_at"), place.label("place"))
        .join(DagModel, DagModel.dag_id == task.dag_id)
        .join(DagTag, DagTag.dag_id == task.dag_id)
        .where(
            DagTag.name == TAG,
            DagModel.is_stale.is_(False),
            task.dag_id.in_(readable.dag_ids),
            task.task_id == OPEN_RUN_TASK,
            task.state.in_(states),
            ended_at.is_not(None),
        )
        .subquery()
    )
    link = and_(
        XComModel.dag_id == ended.c.dag_id,
        XComModel.run_id == ended.c.run_id,
        XComModel.task_id == OPEN_RUN_TASK,
        XComModel.key == MlflowRunLink().xcom_key,
    )
    newest = (
        select(ended, DagRun.conf, XComModel.value.label("link"))
        .join(DagRun, and_(DagRun.dag_id == ended.c.dag_id, DagRun.run_id == ended.c.run_id))
        .outerjoin(XComModel, link)
        .where(ended.c.place <= MOST)
        .order_by(ended.c.ended_at.desc())
    )
    return [
        UnopenedRun(
            one.dag_id,
            one.run_id,
            int(one.ended_at.timestamp() * 1000),
            failed=one.state == TaskInstanceState.FAILED or not one.link,
            given_key=_given_key(one.conf),
        )
        for one in session.execute(newest)
    ]


def _given_key(conf: object) -> str | None:
    """The parameter ``run_key``, as the page has it from MLflow; None where a run was not given one."""
    key = conf.get("run_key") if isinstance(conf, dict) else None
    return printable(key) if isinstance(key, str) else None


UnopenedRuns = Annotated[list[UnopenedRun], Depends(unopened_runs)]
