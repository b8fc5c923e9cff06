"""Where tasks that use an accelerator run: executor, queue and pool."""

from __future__ import annotations

from airflow.sdk import conf

LANE = "gpu"
"""Name of the lane: executor alias, and the queue where the configuration gives no other."""
POOL = "gpu_pool"
"""Pool with one slot a device, where the configuration gives no other."""


def device_lane() -> dict[str, str]:
    """Operator arguments for tasks that use an accelerator.

    A deployment has a lane where its ``[core] executor`` names an alias ``gpu``, as in
    ``LocalExecutor,gpu:CeleryExecutor``, or where ``[safemerge] gpu_queue`` names the queue
    that its device workers listen on. Elsewhere tasks run as all others do.

    The lane's pool must exist: Airflow leaves tasks of a missing pool waiting without an error.

    Returns:
        ``queue`` and ``pool``, and ``executor`` where the alias is configured (another name
        would be an import error). Empty where the deployment has no lane; there the DAG runs
        one task at a time instead, which needs no pool.
    """
    executors = [entry.split(":")[0].strip() for entry in conf.get("core", "executor").split(",")]
    queue = conf.get("safemerge", "gpu_queue", fallback=None)
    if LANE not in executors and not queue:
        return {}
    lane = {"queue": queue or LANE, "pool": conf.get("safemerge", "gpu_pool", fallback=POOL)}
    return lane | {"executor": LANE} if LANE in executors else lane
