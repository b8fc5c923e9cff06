"""Where tasks that use an accelerator run: executor, queue and pool."""

from __future__ import annotations

from airflow.sdk import conf

LANE = "gpu"
"""Executor alias, and the queue's name where the configuration gives no other."""
POOL = "gpu_pool"
"""Pool with one slot a device, where the configuration gives no other."""


def device_lane() -> dict[str, str]:
    """Operator arguments for tasks that use an accelerator.

    A deployment has a lane when its ``[core] executor`` names anything besides the plain
    ``LocalExecutor``: an alias ``gpu`` (``LocalExecutor,gpu:CeleryExecutor``), or workers that
    listen on a queue ``gpu``. Its pool must exist: Airflow leaves tasks of a missing pool
    waiting without an error.

    Returns:
        ``executor`` (only where the alias is configured, since another name is an import
        error), ``queue`` and ``pool``. Empty where all tasks run on this machine; there the
        DAG runs one task at a time instead, which needs no pool.
    """
    names = [entry.split(":")[0].strip() for entry in conf.get("core", "executor").split(",")]
    if names == ["LocalExecutor"]:
        return {}
    lane = {
        "queue": conf.get("safemerge", "gpu_queue", fallback=LANE),
        "pool": conf.get("safemerge", "gpu_pool", fallback=POOL),
    }
    return lane | {"executor": LANE} if LANE in names else lane
