"""DAG runs that MLflow knows nothing of, as their first task opened no record: from Airflow's database."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from airflow.api_fastapi.common.db.common import SessionDep
from airflow.models.dag import DagModel, DagTag
from airflow.models.taskinstance import TaskInstance
from airflow.utils.state import TaskInstanceState
from fastapi import Depends
from sqlalchemy import func, select

from safemerge_airflow import OPEN_RUN_TASK, TAG
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
    """False where it was skipped: there was nothing new to do."""

    @property
    def run_key(self) -> str:
        """What the run would be called in MLflow."""
        return f"{self.dag_id}/{self.run_id}"


def unopened_runs(readable: ReadableDags, session: SessionDep) -> list[UnopenedRun]:
    """Dependency: those of DAGs that are there and that the user may see, the newest first.

    A task that is started again has its new state: a run that opened its record after all is none of them.
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
    newest = select(ended).where(ended.c.place <= MOST).order_by(ended.c.ended_at.desc())
    return [
        UnopenedRun(
            one.dag_id,
            one.run_id,
            int(one.ended_at.timestamp() * 1000),
            failed=one.state == TaskInstanceState.FAILED,
        )
        for one in session.execute(newest)
    ]


UnopenedRuns = Annotated[list[UnopenedRun], Depends(unopened_runs)]
