"""The fleet's stand-in for steps, and what is made of Airflow's records."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from safemerge.pipeline.recipes import read_recipes, recipe_files
from safemerge.records import StepResult
from tests.benchmarks import benchmarks


@pytest.fixture(scope="module")
def fleet() -> Iterator[ModuleType]:
    with benchmarks("fleet") as (fleet,):
        yield fleet


@pytest.mark.parametrize(
    ("step", "outputs"), [("open", set()), ("merge", {"safemerge", "scale", "scale_selected"})]
)
def test_the_stand_in_answers_as_a_step(
    fleet: ModuleType, tmp_path: Path, step: str, outputs: set[str]
) -> None:
    script, result = tmp_path / "python", tmp_path / "result.json"
    script.write_text(fleet.STEP.replace("SLEEP", "0"), encoding="utf-8")
    script.chmod(0o755)
    call = [script, "-m", "safemerge", "step", step, "{}", "--result", result, "--die-with-parent"]
    subprocess.run(call, check=True)
    assert set(StepResult.read(result).outputs) == outputs


def test_recipes_of_the_fleet_can_be_used(fleet: ModuleType, tmp_path: Path) -> None:
    fleet.write_recipes(tmp_path / "recipes", 3)
    read = read_recipes(recipe_files([tmp_path / "recipes"]), offline=False)
    assert [one.problems for one in read] == [[], [], []]


def test_latencies_of_a_run(fleet: ModuleType) -> None:
    def task(name: str, queued: int, start: int, end: int, pid: int | None = 1) -> dict[str, object]:
        at = {"queued_when": queued, "start_date": start, "end_date": end}
        times = {key: f"2026-01-01T00:00:{second:02}Z" for key, second in at.items()}
        return {"dag_id": "d", "task_id": name, "pid": pid, "state": "success", **times}

    tasks = [task("a", 1, 3, 10), task("b", 12, 13, 20)]
    tasks.append(
        {"dag_id": "d", "pid": None, "state": "skipped", **dict.fromkeys(("start_date", "end_date"))}
    )
    tasks[-1]["queued_when"] = None
    run = {"state": "success", "queued_at": "2026-01-01T00:00:00Z", "end_date": "2026-01-01T00:00:21Z"}
    found = fleet.figures([run], tasks, whole_s=60)
    assert found["tasks"] == {"ran": 2, "skipped": 1}
    assert found["tasks_per_minute"] == 2
    assert found["scheduling_s"] == {"n": 1, "median": 2, "p95": 2, "max": 2}
    assert found["starting_s"]["max"] == 2
    assert found["starting_s"]["median"] == 1.5
    assert found["run_s"]["median"] == 21
