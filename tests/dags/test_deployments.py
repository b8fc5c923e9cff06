"""The same DAG file under each kind of deployment, with Airflow's own executors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.dags.test_safemerge_pipeline import ON_A_DEVICE, UPSTREAM

REPOSITORY = Path(__file__).resolve().parents[2]
LOCAL = "airflow.executors.local_executor.LocalExecutor"
DEVICE = "safemerge_airflow.device_executor.DeviceLocalExecutor"
CELERY = "airflow.providers.celery.executors.celery_executor.CeleryExecutor"
KUBERNETES = "airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor"
TEMPLATE = "/etc/safemerge/pods/device-task.yaml"


class Deployment(NamedTuple):
    """Airflow's settings, and what follows from them."""

    settings: dict[str, str]
    executors: list[str]
    """Classes that the scheduler starts, the default one first."""
    lane: dict[str, Any]
    """Where tasks on a device go."""


DEPLOYMENTS = {
    "one machine": Deployment(
        {"CORE__EXECUTOR": f"LocalExecutor,gpu:{DEVICE}"},
        [LOCAL, DEVICE],
        {"executor": "gpu", "queue": "gpu", "pool": "gpu_pool", "executor_config": {}},
    ),
    "mixed": Deployment(
        {"CORE__EXECUTOR": "LocalExecutor,gpu:CeleryExecutor"},
        [LOCAL, CELERY],
        {"executor": "gpu", "queue": "gpu", "pool": "gpu_pool", "executor_config": {}},
    ),
    "celery": Deployment(
        {"CORE__EXECUTOR": "CeleryExecutor", "SAFEMERGE__GPU_QUEUE": "a100"},
        [CELERY],
        {"executor": None, "queue": "a100", "pool": "gpu_pool", "executor_config": {}},
    ),
    "kubernetes": Deployment(
        {"CORE__EXECUTOR": "KubernetesExecutor", "SAFEMERGE__GPU_POD_TEMPLATE": TEMPLATE},
        [KUBERNETES],
        {
            "executor": None,
            "queue": "gpu",
            "pool": "gpu_pool",
            "executor_config": {"pod_template_file": TEMPLATE},
        },
    ),
}
PLAIN = {"executor": None, "queue": "default", "pool": "default_pool", "executor_config": {}}

# As the scheduler starts: the plugins folder is on the path by Airflow's own doing.
START = f"""
import json
from airflow.executors.executor_loader import ExecutorLoader
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.serialization.serialized_objects import DagSerialization

executors = ExecutorLoader.init_executors()
folder = {str(REPOSITORY / "dags")!r}
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
assert bag.import_errors == {{}}, bag.import_errors
dag = bag.dags["safemerge_pipeline"]
restored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
print(json.dumps({{
    "executors": [f"{{type(one).__module__}}.{{type(one).__name__}}" for one in executors],
    "parallelism": [one.parallelism for one in executors],
    "upstream": {{task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks}},
    "lanes": {{
        task.task_id: {{
            key: getattr(restored.get_task(task.task_id), key)
            for key in ("executor", "queue", "pool", "executor_config")
        }}
        for task in dag.tasks
    }},
}}))
"""


def started(settings: dict[str, str]) -> dict[str, Any]:
    """What a scheduler of such a deployment sees."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {f"AIRFLOW__{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_dag_is_the_same_and_its_device_tasks_go_where_the_devices_are(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    seen = started(deployment.settings)
    assert seen["executors"] == deployment.executors
    assert seen["upstream"] == {task: sorted(upstream) for task, upstream in UPSTREAM.items()}
    assert seen["lanes"] == {task: deployment.lane if task in ON_A_DEVICE else PLAIN for task in UPSTREAM}
    if DEVICE in deployment.executors:
        assert seen["parallelism"][1] == 1
