"""The retraining pipeline for any config: a DAG whose runs are told which file to take."""

from __future__ import annotations

import os

from safemerge_airflow.pipeline_dag import pipeline_dag

dag = pipeline_dag(
    "safemerge_pipeline",
    config=os.environ.get("SAFEMERGE_CONFIG"),
    schedule=os.environ.get("SAFEMERGE_SCHEDULE") or None,
)
