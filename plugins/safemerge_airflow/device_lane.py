"""Where tasks that use an accelerator run: executor, queue, pool and pod template."""

from __future__ import annotations

from typing import Any

from airflow.sdk import conf

LANE = "gpu"
"""Name of the lane: executor alias, and the queue where the configuration gives no other."""
POOL = "gpu_pool"
"""Pool with one slot a device, where the configuration gives no other."""


def device_lane() -> dict[str, Any]:
    """Operator arguments for tasks that use an accelerator.

    A deployment has a lane where its configuration says so in one of three ways:

    - ``[core] executor`` names an alias ``gpu``, as in ``LocalExecutor,gpu:CeleryExecutor``;
    - ``[safemerge] gpu_queue`` names the queue that its Celery workers with devices listen on;
    - ``[safemerge] gpu_pod_template`` names the pod template of KubernetesExecutor's tasks
      with devices, as the scheduler sees the file.

    Elsewhere tasks run as all others do.

    The lane's pool must exist: Airflow leaves tasks of a missing pool waiting without an error.

    Returns:
        ``queue`` and ``pool``, ``executor`` where the alias is configured (another name would
        be an import error), and ``executor_config`` where there is a pod template. Empty where
        the deployment has no lane; there the DAG runs one task at a time instead, which needs
        no pool.
    """
    executors = [entry.split(":")[0].strip() for entry in conf.get("core", "executor").split(",")]
    queue = conf.get("safemerge", "gpu_queue", fallback=None)
    template = conf.get("safemerge", "gpu_pod_template", fallback=None)
    if not (LANE in executors or queue or template):
        return {}
    lane = {"queue": queue or LANE, "pool": conf.get("safemerge", "gpu_pool", fallback=POOL)}
    if LANE in executors:
        lane["executor"] = LANE
    if template:
        lane["executor_config"] = {"pod_template_file": template}
    return lane
