"""The buttons that lead from a task to its MLflow run and to the run's report."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink, conf

from safemerge.errors import without_login
from safemerge_airflow.page import framed_path

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

LOCAL_MLFLOW = "http://127.0.0.1:5000"
"""Where ``mlflow server`` listens when nobody says otherwise."""


def mlflow_run_url(run_id: str) -> str:
    """Address of an MLflow run's page."""
    return mlflow_page_url(f"#/runs/{run_id}")


def mlflow_page_url(page: str) -> str:
    """Address of one of MLflow's pages, given from its ``#`` on.

    The base is ``[safemerge] mlflow_url``, else the tracking server where it is one that a
    browser can open, else a server on this machine. Whoever sees the link logs in for themselves.
    """
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    base = conf.get("safemerge", "mlflow_url", fallback=None) or (
        tracking if tracking.startswith(("http://", "https://")) else LOCAL_MLFLOW
    )
    return f"{without_login(base).rstrip('/')}/{page}"


class MlflowRunLink(BaseOperatorLink):
    """Leads to the step's own run, or to the pipeline run while the step has none."""

    @property
    def name(self) -> str:
        """Text of the button."""
        return "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Address of the run, empty where the task never came to one.

        Airflow asks in the task's process, after the task ended, and keeps the answer.
        """
        run_id = getattr(operator, "mlflow_run_id", None)
        return mlflow_run_url(run_id) if run_id else ""


class ReportLink(BaseOperatorLink):
    """Leads to the pipeline run's page, with its report, in Airflow's own frame."""

    @property
    def name(self) -> str:
        """Text of the button."""
        return "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Address of the page, empty where no pipeline run was opened."""
        run_id = getattr(operator, "run_id", None)
        return framed_path(f"/runs/{run_id}") if run_id else ""
