"""The device lane of a single machine: a LocalExecutor of its own, with a slot a device.

For ``[core] executor = LocalExecutor,gpu:safemerge_airflow.device_executor.DeviceLocalExecutor``.
Airflow takes each class once there, so the lane needs one that is not LocalExecutor itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.executors.local_executor import LocalExecutor
from airflow.sdk import conf

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Where CUDA reads which devices a process may see."""


def device_slots() -> list[str | None]:
    """What the tasks of each slot see as ``CUDA_VISIBLE_DEVICES``; None is what the scheduler sees.

    ``[safemerge] gpu_devices`` holds one word a slot: ``0 1`` makes two slots of one device each,
    ``0,1`` one slot with both, for trainings of two processes. Without it there is one slot with all.
    """
    return [*conf.get("safemerge", "gpu_devices", fallback="").split()] or [None]


class DeviceLocalExecutor(LocalExecutor):
    """Runs tasks that use an accelerator beside the machine's other tasks, each slot on its devices."""

    def __init__(self, **kwargs: Any) -> None:
        self._slots = device_slots()
        self._slot_of: dict[int, str | None] = {}
        """Worker process id to its slot."""
        super().__init__(**{**kwargs, "parallelism": len(self._slots)})

    def _spawn_worker(self) -> None:
        """Start a worker process on the devices that no other one has."""
        self._slot_of = {pid: slot for pid, slot in self._slot_of.items() if pid in self.workers}
        free = list(self._slots)
        for taken in self._slot_of.values():
            free.remove(taken)
        slot = free[0]
        with _visible(slot):
            super()._spawn_worker()
        (started,) = self.workers.keys() - self._slot_of.keys()
        self._slot_of[started] = slot


@contextmanager
def _visible(devices: str | None) -> Iterator[None]:
    """Let processes that are started meanwhile see these devices."""
    before = os.environ.get(VISIBLE)
    if devices is not None:
        os.environ[VISIBLE] = devices
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before
