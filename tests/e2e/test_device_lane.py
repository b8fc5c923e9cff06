"""The device lane of one machine, under Airflow's own scheduler: two slots, a whole run of the DAG."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from safemerge.demo.services import (
    DemoHome,
    airflow_password,
    airflow_service,
    free_port,
    mlflow_service,
    prepare_airflow,
    start_mlflow,
)
from tests.conftest import TinyPipeline
from tests.dags.test_deployments import DEVICE
from tests.dags.test_safemerge_pipeline import ON_A_DEVICE, UPSTREAM

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # Services are started detached, as in the demo, and stopped by their process ids.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
TIMEOUT_S = 1800


class Api:
    """Airflow's REST API as the demo's user."""

    def __init__(self, url: str, home: DemoHome) -> None:
        self.url = url
        credentials = airflow_password(home)
        assert credentials
        user, password = credentials
        self.token = None
        self.token = self.ask("/auth/token", {"username": user, "password": password})["access_token"]

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """The answer to a GET, or to a POST where there is a body."""
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 - our own
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)


def test_a_run_sends_its_heavy_tasks_to_the_lane(tiny_pipeline: TinyPipeline, tmp_path: Path) -> None:
    home = DemoHome(tmp_path / "deployment")
    airflow = airflow_service(home)
    try:
        mlflow_url = start_mlflow(home, 0)
        port = free_port(0)
        environment = home.environment(mlflow_url, port) | {
            "AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,gpu:{DEVICE}",
            "AIRFLOW__SAFEMERGE__GPU_DEVICES": "0 1",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "OMP_NUM_THREADS": "1",
        }
        prepare_airflow(home, environment)
        url = airflow.start([sys.executable, "-m", "airflow", "standalone"], port, environment)
        api = Api(url, home)
        run = _triggered(api, str(tiny_pipeline.config))
        path = f"/api/v2/dags/safemerge_pipeline/dagRuns/{run}"
        give_up_s = time.monotonic() + TIMEOUT_S
        while (state := api.ask(path)["state"]) in ("queued", "running"):
            assert time.monotonic() < give_up_s, _log(home)
            time.sleep(2)
        tasks = api.ask(f"{path}/taskInstances?limit=100")["task_instances"]
        assert state == "success", {task["task_id"]: task["state"] for task in tasks}
        lanes = {task["task_id"]: (task["executor"], task["queue"], task["pool"]) for task in tasks}
        assert lanes == {
            task: ("gpu", "gpu", "gpu_pool") if task in ON_A_DEVICE else (None, "default", "default_pool")
            for task in UPSTREAM
        }
    finally:
        airflow.stop()
        mlflow_service(home).stop()


def _triggered(api: Api, config: str) -> str:
    """Start a run, once the DAG is known; gives its id."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            body = {"logical_date": None, "conf": {"config": config}}
            return str(api.ask("/api/v2/dags/safemerge_pipeline/dagRuns", body)["dag_run_id"])
        except urllib.error.HTTPError as error:
            if error.code != 404 or time.monotonic() > give_up_s:
                raise
            time.sleep(2)


def _log(home: DemoHome) -> str:
    return (home.logs / "airflow.log").read_text(encoding="utf-8", errors="replace")
