"""The lane's own executor: how many slots it has, and which devices the worker of each one sees."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.executors import local_executor

from safemerge_airflow.device_executor import VISIBLE, DeviceLocalExecutor

Start = Callable[[str | None], DeviceLocalExecutor]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start an executor whose real worker processes note what they see, and live as long as the test."""
    done = tmp_path / "done"

    def worker(**_: Any) -> None:
        (tmp_path / f"{os.getpid()}.partial").write_text(os.environ.get(VISIBLE, "all"), encoding="utf-8")
        (tmp_path / f"{os.getpid()}.partial").rename(tmp_path / str(os.getpid()))
        while not done.exists():
            time.sleep(0.02)

    monkeypatch.setattr(local_executor, "_run_worker", worker)
    monkeypatch.delenv(VISIBLE, raising=False)
    started: list[DeviceLocalExecutor] = []

    def start_one(devices: str | None) -> DeviceLocalExecutor:
        if devices is not None:
            monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_DEVICES", devices)
        executor = DeviceLocalExecutor()
        executor.start()
        started.append(executor)
        return executor

    yield start_one
    done.touch()
    for executor in started:
        executor.end()


def seen(executor: DeviceLocalExecutor, folder: Path) -> list[str]:
    """What the workers that live now see, once all have said so."""
    for pid, worker in executor.workers.items():
        while not (folder / str(pid)).exists():
            assert worker.is_alive()  # a dead one keeps its number until somebody asks
            time.sleep(0.02)
    return sorted((folder / str(pid)).read_text(encoding="utf-8") for pid in executor.workers)


@pytest.mark.parametrize(
    ("devices", "slots"),
    [(None, ["all"]), ("", ["all"]), ("0 1", ["0", "1"]), ("0,1  2,3", ["0,1", "2,3"]), ("0 0", ["0", "0"])],
)
def test_a_slot_is_a_worker_that_sees_its_devices(
    start: Start, tmp_path: Path, devices: str | None, slots: list[str]
) -> None:
    executor = start(devices)
    assert executor.parallelism == len(slots)
    assert seen(executor, tmp_path) == slots
    assert VISIBLE not in os.environ


def test_a_worker_in_the_place_of_a_dead_one_sees_the_same_devices(start: Start, tmp_path: Path) -> None:
    executor = start("0 1 2")
    before = dict(executor._slot_of)
    dead = next(pid for pid, slot in before.items() if slot == "1")
    os.kill(dead, signal.SIGKILL)
    executor.workers.pop(dead).join()  # as the executor itself does at its next heartbeat
    executor._spawn_worker()
    assert seen(executor, tmp_path) == ["0", "1", "2"]
    assert executor.workers.keys() & before.keys() == before.keys() - {dead}
