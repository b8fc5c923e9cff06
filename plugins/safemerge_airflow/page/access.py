"""Who may see what: Airflow's own login, and its own permission to read the runs of a DAG.

Airflow mounts the apps of plugins open to everyone, so the page asks for itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.models.dag import DagModel
from fastapi import Depends
from sqlalchemy import select

from safemerge_airflow.page.records import PipelineRun

may_read_runs = requires_access_dag("GET", DagAccessEntity.RUN)
"""Dependency: answers 401 to who is not logged in, and 403 to who may not read runs of DAGs."""


class Readable(NamedTuple):
    """The DAGs whose runs a user may see."""

    dag_ids: frozenset[str]
    all_dags: bool
    """Whether these are all DAGs that there are. Runs of DAGs that are gone, and runs that are not
    Airflow's, are shown only then."""

    def allows(self, run: PipelineRun) -> bool:
        """Whether the user may see a run."""
        return self.all_dags or run.dag_id in self.dag_ids

    def of(self, runs: Iterable[PipelineRun]) -> list[PipelineRun]:
        """Those of the runs that the user may see."""
        return [run for run in runs if self.allows(run)]


def readable_dags(user: GetUserDep, session: SessionDep) -> Readable:
    """Dependency: what the user may see."""
    permitted = get_auth_manager().get_authorized_dag_ids(user=user, method="GET", session=session)
    return Readable(frozenset(permitted), permitted >= set(session.scalars(select(DagModel.dag_id))))


ReadableDags = Annotated[Readable, Depends(readable_dags)]
