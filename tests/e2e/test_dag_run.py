"""A DAG run that is killed and started again, under Airflow and MLflow, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import psutil
import pytest

from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger
from tests.conftest import TinyPipeline
from tests.e2e.conftest import Deployment

pytestmark = [
    pytest.mark.integration,
    # MLflow is started detached, as in the demo, and stopped by its process id.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

LABELS = {
    "train_safety_adapter": "train_safety_adapter",
    "train_task_adapter": "train_task_adapter",
    "safemerge": "merge",
    **{
        f"evaluate.{arm}": f"evaluate_{arm}"
        for arm in ("aligned", "fine_tuned", "safemerge", "scale", "scale_selected")
    },
    "gate": "gate",
    "promote": "promote",
}
"""Tasks that leave a run in MLflow, with the label it has there."""
TIMEOUT_S = 900


class DagRun:
    """``airflow dags test`` in a process of its own, watched and killed from outside."""

    def __init__(self, deployment: Deployment, pipeline: TinyPipeline, run_key: str) -> None:
        self.ledger = Ledger(deployment.mlflow_url)
        self.experiment = str(pipeline.lines["tracking"]["experiment"])
        self.lines: list[str] = []
        conf = json.dumps({"config": str(pipeline.config), "run_key": run_key})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "dags", "test", "safemerge_pipeline", "--conf", conf],
            env=deployment.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.finish()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            self.lines.extend(self.process.stdout)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def finish(self) -> int:
        """Wait for the end; returns the exit code."""
        code = self.process.wait(TIMEOUT_S)
        self._reader.join()
        return code

    def kill_at(self, task: str) -> None:
        """SIGKILL the run while it is at a task: once the step's process runs, and its MLflow run exists."""
        self._wait(lambda: f"starting task_id={task} " in self.log, f"{task} to start")
        step = self._wait(lambda: psutil.Process(self.process.pid).children(), f"a process of {task}")
        if task in LABELS:
            self._wait(lambda: LABELS[task] in self.runs(), f"the MLflow run of {task}")
        elif task == "open_run":
            self._wait(self.runs, "the MLflow run of the pipeline")
        self.process.kill()
        self.finish()
        _, alive = psutil.wait_procs(step, timeout=60)
        assert alive == [], "the step outlived its task"

    def runs(self) -> dict[str, Any]:
        """MLflow's runs by label; the pipeline's own is ``pipeline``."""
        experiment = self.ledger.client.get_experiment_by_name(self.experiment)
        found = self.ledger.client.search_runs([experiment.experiment_id]) if experiment else []
        runs = {run.data.tags.get(tags.LABEL, "pipeline"): run for run in found}
        assert len(runs) == len(found), sorted(run.info.run_name for run in found)
        return runs

    def _wait(self, condition: Any, what: str) -> Any:
        give_up_s = time.monotonic() + TIMEOUT_S
        while not (value := condition()):
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.log[-8000:]}"
            assert time.monotonic() < give_up_s, f"waited in vain for {what}:\n{self.log[-8000:]}"
            time.sleep(0.05)
        return value


def killed_and_resumed(deployment: Deployment, pipeline: TinyPipeline, kill_points: Sequence[str]) -> None:
    """Kill a run at each point, starting it again each time, and look at what is left in the end."""
    finished: dict[str, Any] = {}
    run_key = ""
    for number, task in enumerate([*kill_points, None]):
        # Once there is a verdict, another key means another run.
        run_key = run_key if "promote" in finished else f"dag/attempt {number}"
        with DagRun(deployment, pipeline, run_key) as dag_run:
            if task is None:
                assert dag_run.finish() == 0, dag_run.log[-8000:]
            else:
                dag_run.kill_at(task)
            runs = dag_run.runs()
        for label, before in finished.items():
            assert runs[label].info == before.info, f"{label} was done before the kill, and done again"
            if f"starting task_id={_task(label)} " in dag_run.log and _task(label) != task:
                assert f"already done in MLflow run {before.info.run_id}, nothing repeated" in dag_run.log
        finished |= {
            label: run for label, run in runs.items() if label != "pipeline" and run.info.status == "FINISHED"
        }

    assert "end task task_id=close_run " in dag_run.log
    assert set(runs) == {"pipeline", *LABELS.values()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["pipeline"].data.tags[tags.VERDICT] == "pass"
    versions = dag_run.ledger.client.search_model_versions("name = 'tiny-lora'")
    champion = dag_run.ledger.client.get_model_version_by_alias("tiny-lora", "champion")
    # MLflow's SQL store gives numbers from a search.
    assert [str(version.version) for version in versions] == [str(champion.version)] == ["1"]


def _task(label: str) -> str:
    return next(task for task, known in LABELS.items() if known == label)


@pytest.mark.slow  # CI runs it by name
def test_run_killed_twice_is_finished_without_repeating(
    deployment: Deployment, tiny_pipeline: TinyPipeline
) -> None:
    killed_and_resumed(deployment, tiny_pipeline, ["train_task_adapter", "safemerge"])


@pytest.mark.slow
def test_run_killed_at_every_task_is_finished_without_repeating(
    deployment: Deployment, tiny_pipeline: TinyPipeline
) -> None:
    killed_and_resumed(deployment, tiny_pipeline, ["open_run", *LABELS, "close_run"])
