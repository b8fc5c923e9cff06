"""The demo: a real model, retrained, repaired, measured, judged and recorded, on one machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml
from rich.console import Console

from safemerge.demo.services import DemoHome, prepare_airflow, running_mlflow
from safemerge.errors import StepError
from safemerge.records import EvaluationReport, GateDecision
from safemerge.storage.atomic import atomic_file

DAG_ID = "safemerge_pipeline"
PRESET = Path(__file__).parent / "pipeline.yaml"
ARM_LABEL = "evaluate_"


def run_demo(home: DemoHome, console: Console, mlflow_port: int = 5000) -> None:
    """Prepare the models, run the DAG twice, and show the last screen.

    The second run judges the unrepaired adapter of the first, which must be blocked.

    Raises:
        StepError: Airflow ended before a verdict; the message names its log.
        SafemergeError: what the preparation or a step raised.
    """
    started_s = time.monotonic()
    prepare_models(home, console)
    write_pipeline(home)
    with running_mlflow(home, mlflow_port) as mlflow_url:
        console.print(f"[bold]MLflow[/] answers at {mlflow_url} while the demo runs")
        environment = home.environment(mlflow_url)
        prepare_airflow(home, environment)
        os.environ.update({key: environment[key] for key in ("MLFLOW_TRACKING_URI", "SAFEMERGE_HOME")})
        first = run_dag(home, console, environment, "demo", {})
        unrepaired = ledger_output(first, "train_task_adapter", "adapter")
        second = run_dag(home, console, environment, "demo-unrepaired", {"adapter": unrepaired})
        show(home, console, first, second, time.monotonic() - started_s)
