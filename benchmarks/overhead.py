"""What a DAG run costs beside training, generation and merging, of the real pipeline on a tiny model.

Starts an MLflow server and ``airflow standalone`` (LocalExecutor) over fresh databases in a temporary folder
and runs the DAG twice: first a run that is meant to fail at once, as the first requests take Airflow seconds,
then the one that is measured, on a two-layer model whose compute takes a second: what is left is the cost of
doing it under Airflow and MLflow. ``probe/sitecustomize.py`` notes in every process where its time goes.

    python benchmarks/overhead.py                       # a tiny model
    python benchmarks/overhead.py --config recipe.yaml  # any pipeline, whose models are on this machine

A task's *wall* time is Airflow's own, from its start to its end. Of it are

- *imports*: loading Python modules, in the task's process and in the step's;
- *compute*: training, generation, scoring, judging and merging;
- *rest*: everything else, which is what the goal is about. *before* the step, Airflow's task process parses
  the DAG and asks for its inputs; *after* it, the step's process ends and outputs are pushed; in between are
  MLflow, loading of models, digests, lm-eval's tasks and plots, by the probe's names.

Times between tasks are given beside them: *scheduling*, until the scheduler has queued the next task, and
*starting*, until it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from airflow_api import Api, moment, scheduling, seconds, tasks_of, waited
from measuring import ROOT, Json, machine, save

from safemerge.demo.services import (
    DemoHome,
    airflow_service,
    free_port,
    mlflow_service,
    prepare_airflow,
    start_mlflow,
)

GOAL_S = 30
DAG_ID = "safemerge_pipeline"
COMPUTE = {"training", "generation", "scoring", "judging", "merging"}
"""Kinds of time that are the pipeline's work itself."""
TIMEOUT_S = 1800


class Notes(NamedTuple):
    """What the probe wrote of one process."""

    argv: list[str]
    parent: int
    stretches: list[tuple[str, float, float]]
    """Kind, start and seconds."""


def main() -> None:
    """Run the DAG, split the time of its tasks, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="a pipeline's YAML file, in place of the tiny one's")
    args = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        run, tasks, notes = measure(Path(folder), args.config or tiny_pipeline(Path(folder)))
    rows = [split(task, notes) for task in sorted(tasks, key=lambda task: str(task["start_date"]))]
    result = {"machine": before, **summary(run, tasks, rows), "tasks": rows}
    show(result)
    print(f"kept in {save('overhead', result)}")


def tiny_pipeline(folder: Path) -> Path:
    """The pipeline of the tests, on a model that they make."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import write_tiny_pair, write_tiny_pipeline

    return write_tiny_pipeline(folder / "pipeline", write_tiny_pair(folder / "models")).config


def measure(folder: Path, config: Path) -> tuple[Json, list[Json], dict[int, Notes]]:
    """The run as Airflow tells it, its tasks that ran, and the notes of all processes by their id."""
    home = DemoHome(folder / "deployment", checkout=ROOT)
    service, port = airflow_service(home), free_port(0)
    probe = folder / "probe"
    probe.mkdir()
    try:
        environment = home.environment(start_mlflow(home, 0), port) | {
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "benchmarks" / "probe", ROOT, ROOT / "plugins"))),
            "SAFEMERGE_CONFIG": str(config.resolve()),
            "SAFEMERGE_PROBE": str(probe),
        }
        prepare_airflow(home, environment)
        url = service.start([sys.executable, "-m", "airflow", "standalone"], port, environment)
        api = Api(url, home)
        waited(lambda: [dag for dag in api.rows("/api/v2/dags", "dags") if dag["dag_id"] == DAG_ID], 1, 300)
        # One run that fails at once: the first request of each kind takes Airflow seconds after its start.
        for conf in ({"config": "/nowhere.yaml"}, {}):
            asked = api.ask(f"/api/v2/dags/{DAG_ID}/dagRuns", {"logical_date": None, "conf": conf})
            (run,) = waited(lambda name=asked["dag_run_id"]: ended(api, name), 1, TIMEOUT_S)
        if run["state"] != "success":
            raise SystemExit(f"the run ended as {run['state']}; logs were below {home.root}")
        tasks = [task for task in tasks_of(api, run) if task["pid"]]
    finally:
        service.stop()
        mlflow_service(home).stop()
    return run, tasks, {int(file.stem): read(file) for file in probe.glob("*.jsonl")}


def ended(api: Api, name: str) -> list[Json]:
    """The run, once it has ended."""
    runs = api.rows(f"/api/v2/dags/{DAG_ID}/dagRuns", "dag_runs")
    return [run for run in runs if run["dag_run_id"] == name and run["state"] in ("success", "failed")]


def read(file: Path) -> Notes:
    """The notes of one process; a line that was being written when it was killed is left out."""
    head, *lines = [
        json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line[-1:] in "]}"
    ]
    return Notes(head["argv"], head["parent"], [tuple(line) for line in lines if isinstance(line, list)])


def split(task: Json, notes: dict[int, Notes]) -> Json:
    """Where one task's wall time went, in seconds."""
    start, end = moment(task["start_date"]), moment(task["end_date"])
    own = notes[task["pid"]]
    in_task = sum(took for kind, at, took in own.stretches if kind == "import" and start <= at <= end)
    steps = [found for found in notes.values() if found.parent == task["pid"] and "step" in found.argv]
    spent: defaultdict[str, float] = defaultdict(float)
    in_steps = 0.0
    last_end = end
    for step in steps:
        at = {kind: at for kind, at, _ in step.stretches}
        in_steps += at["end"] - at["interpreter"]
        last_end = at["end"]
        for kind, _, took in step.stretches:
            spent[kind] += took
    known = {kind: took for kind, took in spent.items() if kind not in COMPUTE | {"import", "end"}}
    wall, imports = end - start, in_task + spent["import"]
    compute = sum(spent[kind] for kind in COMPUTE)
    return {
        "task": task["task_id"],
        "queued_to_running_s": seconds(task["queued_when"], task["start_date"]),
        "wall_s": wall,
        "imports_s": imports,
        "imports_of_task_process_s": in_task,
        "compute_s": compute,
        "rest_s": wall - imports - compute,
        "of_rest_s": {
            "before": wall - in_steps - in_task - (end - last_end),
            "after": end - last_end,
            **dict(sorted(known.items())),
            "other": in_steps - sum(spent.values()),
        },
    }


def summary(run: Json, tasks: list[Json], rows: list[Json]) -> Json:
    """Totals of the run."""
    of_rest: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        for kind, took in row["of_rest_s"].items():
            of_rest[kind] += took
    total = {key: sum(row[key] for row in rows) for key in ("wall_s", "imports_s", "compute_s", "rest_s")}
    return {
        "task_processes": len(rows),
        "run_s": seconds(run["queued_at"], run["end_date"]),
        "scheduling_s": sum(scheduling(tasks)),
        "starting_s": sum(row["queued_to_running_s"] for row in rows),
        **total,
        "of_rest_s": dict(of_rest),
        "goal_s": GOAL_S,
        "met": total["rest_s"] <= GOAL_S,
    }


def show(result: Json) -> None:
    """The table, for people."""
    columns = ("wall_s", "imports_s", "compute_s", "rest_s")
    of_rest: dict[str, float] = result["of_rest_s"]
    kinds = sorted(of_rest, key=lambda kind: -of_rest[kind])
    print(f"{'task':26}" + "".join(f"{name.removesuffix('_s'):>9}" for name in columns), end="   of rest:")
    print("".join(f"{kind:>12}" for kind in kinds))
    for row in [*result["tasks"], {"task": "total", **result}]:
        cells = "".join(f"{row[name]:9.2f}" for name in columns)
        of_rest = row["of_rest_s"]
        print(f"{row['task']:26}{cells}{'':11}" + "".join(f"{of_rest.get(kind, 0):12.2f}" for kind in kinds))
    print(
        f"The run took {result['run_s']:.1f} s. Its {result['task_processes']} tasks stood still for "
        f"{result['scheduling_s']:.1f} s until they were queued, and for {result['starting_s']:.1f} s until "
        "they ran."
    )
    print(f"Goal: at most {GOAL_S} s of rest; {'met' if result['met'] else 'missed'}.")


if __name__ == "__main__":
    main()
