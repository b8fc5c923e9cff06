"""A fleet of recipes through Airflow's own scheduler, their compute replaced by a short sleep.

    python benchmarks/fleet.py [--recipes 50] [--parallelism 8] [--sleep 1] [--database URL] [--output FILE]

Starts ``airflow standalone`` (LocalExecutor) over a fresh database in a temporary folder, lets it find the
recipes by :class:`safemerge_airflow.recipe_bundle.RecipeBundle`, triggers all of them at once and waits.
Steps are a stand-in's (``[safemerge] python``) that sleeps and answers as a step would: what is left is
Airflow's own cost. SQLite, or an empty Postgres database that ``--database`` names, whose own processor time
is then not in the figures.

Latencies of a task: *scheduling*, from the end of the last task that it waits for to queued; *starting*, from
queued to running; both in seconds. Processor times are those of Airflow's processes and their children, by
what they are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import psutil
import yaml
from airflow_api import Api, scheduling, seconds, tasks_of, waited
from measuring import ROOT, Json, machine

from safemerge.demo.services import DemoHome, airflow_service, free_port, prepare_airflow

BUNDLES: tuple[tuple[str, str, Json | None], ...] = (
    ("dags-folder", "airflow.dag_processing.bundles.local.LocalDagBundle", {}),
    ("recipes", "safemerge_airflow.recipe_bundle.RecipeBundle", None),
)
ROLES = ("api-server", "api_server", "scheduler", "dag-processor", "triggerer", "task", "worker")
ENDED = {"success", "failed"}

STEP = f"""#!{sys.executable} -IS
import json, sys, time
name = sys.argv[4]
time.sleep(SLEEP)
outputs = {{
    "train": ["adapter"], "merge": ["safemerge", "scale", "scale_selected"], "evaluate": ["report"],
    "gate": ["decision"], "promote": ["model_version"],
}}.get(name, [])
figures = {{
    "gate": {{"passed": True, "verdict": "pass", "summary": "PASS"}},
    "promote": {{"version": "1", "verdict": "pass"}},
    "open": {{"tuning": False, "learning": False}},
}}.get(name, {{}})
result = {{
    "step": name, "run_id": name, "inputs_digest": "d", "figures": figures,
    "outputs": {{one: {{"uri": "models:/m/1", "digest": "ab"}} for one in outputs}},
}}
with open(sys.argv[sys.argv.index("--result") + 1], "w") as file:
    json.dump(result, file)
"""
"""Answers any step at once after the sleep; runs isolated and without site, to cost next to nothing."""


def main() -> None:
    """Measure a fleet and print the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", type=int, default=50, help="recipes, one run of each (default: 50)")
    parser.add_argument("--parallelism", type=int, default=8, help="tasks at a time (default: 8)")
    parser.add_argument("--sleep", type=float, default=1, help="seconds of a step's compute (default: 1)")
    parser.add_argument("--database", help="address of an empty Postgres database, in place of SQLite")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds to give up after (3600)")
    parser.add_argument("--output", type=Path, help="file for the result, beside printing it")
    args = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        measured = measure(Path(folder), args)
    result = {
        **{name: getattr(args, name) for name in ("recipes", "parallelism", "sleep")},
        "database": "postgres" if args.database else "sqlite",
        **measured,
        "machine": before,
    }
    text = json.dumps(result, indent=2)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(folder: Path, args: argparse.Namespace) -> Json:
    """Start Airflow, run the fleet, and read what came of it."""
    write_recipes(folder / "recipes", args.recipes)
    step = folder / "python"
    step.write_text(STEP.replace("SLEEP", str(args.sleep)), encoding="utf-8")
    step.chmod(0o755)
    home = DemoHome(folder / "deployment", checkout=ROOT)
    service, port = airflow_service(home), free_port(0)
    environment = home.environment("http://127.0.0.1:9", port) | settings(folder, step, args)
    try:
        prepare_airflow(home, environment)
        url = service.start([sys.executable, "-m", "airflow", "standalone"], port, environment)
        api = Api(url, home)
        start_s = time.monotonic()
        names = waited(lambda: dags(api), args.recipes, args.timeout)
        parsed_s = time.monotonic() - start_s
        pid = json.loads(service.state_file.read_text(encoding="utf-8"))["pid"]
        with Processors(pid) as processors:
            start_s = time.monotonic()
            for name in names:
                api.ask(f"/api/v2/dags/{name}/dagRuns", {"logical_date": None, "conf": {}})
            triggered_s = time.monotonic() - start_s
            runs = waited(lambda: ended(api, names), args.recipes, args.timeout, every_s=5)
            whole_s = time.monotonic() - start_s
        tasks = [task for run in runs for task in tasks_of(api, run)]
    finally:
        service.stop()
    return {
        "all_recipes_known_s": parsed_s,
        "triggered_s": triggered_s,
        "whole_s": whole_s,
        "cpu_s": processors.seconds(),
        "cores_used": sum(processors.seconds().values()) / whole_s,
        **figures(runs, tasks, whole_s),
    }


def settings(folder: Path, step: Path, args: argparse.Namespace) -> dict[str, str]:
    """Airflow's settings beyond the demo's."""
    bundles = [
        {"name": n, "classpath": c, "kwargs": {"recipes": str(folder / "recipes")} if k is None else k}
        for n, c, k in BUNDLES
    ]
    found = {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(folder / "bundles"),
        "AIRFLOW__CORE__PARALLELISM": str(args.parallelism),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__SAFEMERGE__PYTHON": str(step),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]),
    }
    return found | ({"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": args.database} if args.database else {})


def write_recipes(folder: Path, count: int) -> None:
    """Copies of the demo's recipe under names of their own."""
    recipe = yaml.safe_load((ROOT / "safemerge" / "demo" / "pipeline.yaml").read_text(encoding="utf-8"))
    folder.mkdir()
    for number in range(count):
        name = f"recipe-{number:04d}"
        mine = recipe | {"name": name, "tracking": {"experiment": name, "registered_model": name}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")


def dags(api: Api) -> list[str]:
    """The recipes that Airflow knows."""
    return sorted(d["dag_id"] for d in api.rows("/api/v2/dags", "dags") if d["dag_id"].startswith("recipe-"))


def ended(api: Api, names: list[str]) -> list[Json]:
    """The runs that have ended."""
    runs = api.rows("/api/v2/dags/~/dagRuns", "dag_runs")
    return [run for run in runs if run["dag_id"] in names and run["state"] in ENDED]


# --- what came of it ---------------------------------------------------------------


def figures(runs: list[Json], tasks: list[Json], whole_s: float) -> Json:
    """Throughput, latencies and times of runs."""
    ran = [task for task in tasks if task["pid"]]  # a task that the scheduler skips starts no process
    by_run: dict[str, list[Json]] = defaultdict(list)
    for task in tasks:
        by_run[task["dag_id"]].append(task)
    return {
        "runs": {state: sum(run["state"] == state for run in runs) for state in sorted(ENDED)},
        "tasks": {"ran": len(ran), "skipped": len(tasks) - len(ran)},
        "tasks_per_minute": 60 * len(ran) / whole_s,
        "runs_per_hour": 3600 * len(runs) / whole_s,
        "scheduling_s": spread([s for of in by_run.values() for s in scheduling(of)]),
        "starting_s": spread([seconds(task["queued_when"], task["start_date"]) for task in ran]),
        "running_s": spread([seconds(task["start_date"], task["end_date"]) for task in ran]),
        "run_s": spread([seconds(run["queued_at"], run["end_date"]) for run in runs]),
    }


def spread(values: list[float]) -> Json:
    """Median, 95th percentile and largest."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "n": len(ordered),
        "median": statistics.median(ordered),
        "p95": ordered[round(0.95 * last)],
        "max": ordered[-1],
    }


class Processors:
    """Samples processor time of a process and of all below it, by role."""

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._root = psutil.Process(pid)
        self._every_s = every_s
        self._found: dict[tuple[int, float], tuple[str, float, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processors:
        """Begin."""
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Sample a last time."""
        self._ended.set()
        self._thread.join()
        self._sample()

    def seconds(self) -> dict[str, float]:
        """Role to processor seconds since the beginning; short-lived processes lose up to half a second."""
        found: dict[str, float] = defaultdict(float)
        for role, first, last in self._found.values():
            found[role] += last - first
        return dict(found)

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        first_look = not self._found
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                times = process.cpu_times()
                key, used = (process.pid, process.create_time()), times.user + times.system
                known = self._found.get(key)
                role = role_of(process)
            except psutil.Error:
                continue
            first = known[1] if known else (used if first_look else 0.0)
            self._found[key] = (role, first, used)


def role_of(process: psutil.Process) -> str:
    """What a process of Airflow's is, by its command line."""
    line = " ".join(process.cmdline())
    return next((role.replace("_", "-") for role in ROLES if role in line), "other")


if __name__ == "__main__":
    main()
