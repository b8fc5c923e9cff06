"""What dies, hangs or fills up while the pipeline runs under Compose: nothing is lost, nothing doubled.

Two runs of the DAG, each a story told by the tests in the order of this file: one event after
the other in the middle of a training, then a look at what is left.
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import requests
import yaml

from tests.compose.conftest import SCREEN
from tests.compose.stack import AIRFLOW_SERVICES, DAG, HTTP_TIMEOUT_S, Stack, run, wait_for
from tests.conftest import TinyPair, write_tiny_pipeline

HOME = "/var/lib/safemerge"
TASK = "train_task_adapter"
"""The training that is disturbed; the other one takes seconds. Its MLflow run is labelled alike."""
STEPS = 3600
"""Minutes of training on two fast cores: it must outlast all that is done to it."""
LABELS = {
    TASK,
    "train_safety_adapter",
    "merge",
    *(f"evaluate_{arm}" for arm in ("aligned", "fine_tuned", "safemerge", "scale", "scale_selected")),
    "gate",
    "promote",
}
PATIENCE_S = 600


class Attempt(NamedTuple):
    """A try of the training that has a whole checkpoint by now."""

    number: int
    checkpoint: int
    """The optimiser step of its last whole checkpoint."""


class Chaos:
    """One run of the DAG, and how to disturb and to watch it."""

    def __init__(self, stack: Stack, run_id: str) -> None:
        self.stack = stack
        self.run_id = run_id
        self.container = functools.cache(stack.container)

    # --- watching ------------------------------------------------------------------

    def wait(self, what: str, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
        """The condition's first true value; a service that is away for a while is no error.

        Meanwhile at most one step may be at work on the GPU worker.
        """

        def calm() -> Any:
            steps = self.steps("worker-gpu")
            assert len(steps) <= 1, f"several steps on one device: {steps}"
            try:
                return condition()
            except (requests.RequestException, AssertionError):
                return None

        try:
            return wait_for(what, calm, timeout_s)
        except AssertionError as error:
            states = {name: (task["state"], task["try_number"]) for name, task in self.tasks().items()}
            logs = "\n".join(
                self.log(number, name)[-3000:]
                for name, (state, number) in states.items()
                if state in ("running", "failed", "up_for_retry")
            )
            raise AssertionError(f"{error}\n{states}\n{logs}") from None

    def steps(self, worker: str) -> dict[str, str]:
        """The steps at work in a worker's container: process id on this machine to command line."""
        top = ["docker", "top", self.container(worker), "-eo", "pid,args"]
        lines = subprocess.run(top, capture_output=True, text=True, check=False).stdout.splitlines()
        found = (line.split(maxsplit=1) for line in lines if "safemerge step " in line)
        return dict(found)

    def tasks(self) -> dict[str, dict[str, Any]]:
        """The run's tasks by id."""
        return self.stack.tasks(self.run_id)

    def log(self, number: int, task: str = TASK) -> str:
        """The log of a try."""
        return self.stack.task_log(self.run_id, task, number)

    def checkpoint(self) -> int:
        """The optimiser step of the training's last whole checkpoint; 0 where there is none."""
        listing = self.on_disk(
            "find", f"{HOME}/work", "-path", f"*/{TASK}-*/checkpoint-*/complete.json", check=False
        )
        return max((int(step) for step in re.findall(r"checkpoint-(\d+)", listing)), default=0)

    def on_disk(self, *command: str, check: bool = True) -> str:
        """Run a command on the GPU worker's disk, be the worker alive or not."""
        return run("docker", "exec", self.container("disk"), *command, check=check)

    def training(self, after_step: int = 0) -> Attempt:
        """The training at work, with a whole checkpoint of a step later than that."""

        def at_work() -> Attempt | None:
            step, task = self.checkpoint(), self.tasks().get(TASK, {"state": None})
            if task["state"] == "success":
                pytest.fail("the training ended before it could be disturbed: raise STEPS")
            if step <= after_step or not self.steps("worker-gpu"):
                return None
            return Attempt(int(task["try_number"]), step) if task["state"] == "running" else None

        return self.wait(f"a checkpoint after step {after_step}", at_work)

    def resumed(self, before: Attempt) -> int:
        """Wait until a later try goes on from a checkpoint; returns the checkpoint's step."""

        def goes_on() -> re.Match[str] | None:
            number = int(self.tasks()[TASK]["try_number"])
            if number <= before.number:
                return None
            return re.search(r"resuming from \S+/checkpoint-(\d+)", self.log(number))

        step = int(self.wait("the training to resume", goes_on)[1])
        assert step >= before.checkpoint
        return step

    def heartbeat_timeouts(self) -> int:
        """How often the scheduler missed the training's heartbeat."""
        asked = urlencode({"run_id": self.run_id, "task_id": TASK, "event": "heartbeat timeout"})
        return int(self.stack.airflow("GET", f"/eventLogs?{asked}")["total_entries"])

    # --- disturbing ------------------------------------------------------------------

    def sigkill(self, service: str) -> None:
        """SIGKILL every process of a service; its container ends, and Docker's policy starts it again."""
        container = self.container(service)
        started = self.started_at(service)
        run("docker", "exec", container, "sh", "-c", "kill -KILL -1", check=False)
        wait_for("Docker to start it again", lambda: self.started_at(service) != started, 60)

    def started_at(self, service: str) -> str:
        """When a service's container was started last."""
        return run("docker", "inspect", "--format", "{{.State.StartedAt}}", self.container(service))

    def docker(self, command: str, service: str) -> None:
        """Pause, stop or restart a service's container."""
        run("docker", command, self.container(service))

    def report(self, event: str, since_s: float, seen: str) -> None:
        """A line of the last screen."""
        self.stack.seen.append(f"{event}: recovered in {time.monotonic() - since_s:.0f} s; {seen}")

    # --- in the end --------------------------------------------------------------------

    def end(self, champion: int, labels: set[str]) -> None:
        """Wait for the run's end, and look at what is left of it."""
        state = self.wait(
            "the run to end",
            lambda: (
                (found := self.stack.airflow("GET", f"/dags/{DAG}/dagRuns/{self.run_id}")["state"])
                in ("success", "failed")
                and found
            ),
        )
        tasks = self.tasks()
        assert state == "success", {name: task["state"] for name, task in tasks.items()}
        assert self.steps("worker") == self.steps("worker-gpu") == {}
        runs = self.mlflow_runs()
        (pipeline,) = (
            found for found in runs if found["tags"].get("safemerge.run_key") == f"{DAG}/{self.run_id}"
        )
        assert pipeline["status"] == "FINISHED"
        assert pipeline["tags"]["safemerge.verdict"] == "pass"
        steps = [found for found in runs if found["tags"].get("mlflow.parentRunId") == pipeline["id"]]
        assert Counter(found["tags"]["safemerge.label"] for found in steps) == Counter(labels)
        assert {found["status"] for found in steps} == {"FINISHED"}
        versions = self.stack.mlflow("/model-versions/search?filter=name='tiny-lora'").json()[
            "model_versions"
        ]
        alias = self.stack.mlflow("/registered-models/alias?name=tiny-lora&alias=champion").json()
        assert sorted(version["version"] for version in versions) == [str(n + 1) for n in range(champion)]
        assert alias["model_version"]["version"] == str(champion)
        tries = {name: task["try_number"] for name, task in tasks.items() if task["try_number"] > 1}
        self.stack.seen.append(
            f"the run succeeded: {len(steps)} MLflow runs, one a step; champion is version {champion}; "
            f"no process left; tries above one: {tries or 'none'}"
        )

    def mlflow_runs(self) -> list[dict[str, Any]]:
        """MLflow's runs: ``id``, ``status`` and ``tags``."""
        experiment = self.stack.mlflow("/experiments/get-by-name?experiment_name=tiny").json()["experiment"]
        answer = requests.post(
            f"http://127.0.0.1:{self.stack.settings['MLFLOW_PORT']}/api/2.0/mlflow/runs/search",
            auth=("safemerge", self.stack.settings["MLFLOW_WORKER_PASSWORD"]),
            json={"experiment_ids": [experiment["experiment_id"]]},
            timeout=HTTP_TIMEOUT_S,
        )
        answer.raise_for_status()
        return [
            {
                "id": found["info"]["run_id"],
                "status": found["info"]["status"],
                "tags": {tag["key"]: tag["value"] for tag in found["data"]["tags"]},
            }
            for found in answer.json()["runs"]
        ]


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pipelines: Path, recipes: Path, request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """All services, impatient and with a small disk."""
    stack = Stack(
        tmp_path_factory.mktemp("env"),
        {"PIPELINES": str(pipelines), "RECIPES": str(recipes), "IMAGE_TAG": "chaos-test"},
        files=("tests/compose/chaos.yml",),
    )
    stack.seen = request.config.stash.setdefault(SCREEN, [])
    stack.build()
    try:
        stack.start()
        stack.seen.append(
            f"images built in {stack.build_s:.0f} s, all services healthy after {stack.healthy_s:.0f} s"
        )
        yield stack
    finally:
        stack.remove()
        stack.seen.append("taken down: no container, volume or network is left")


@pytest.fixture(scope="module")
def configs(tiny_pair: TinyPair, pipelines: Path) -> list[str]:
    """Two pipelines that differ in the trainings' seed, each training a minute long; as workers see them."""
    folder = pipelines / "tiny"
    models = {role: folder / role for role in tiny_pair._fields}
    for role, model in tiny_pair._asdict().items():
        shutil.copytree(model, models[role])
    # One folder for both: a task that names its data by another path counts as another task.
    pipeline = write_tiny_pipeline(folder / "pipelines", TinyPair(**models))
    configs = []
    for seed in (0, 1):
        lines: Any = copy.deepcopy(pipeline.lines)
        lines["task_training"] |= {"steps": STEPS, "save_every_steps": 20, "batch_size": 8, "seed": seed}
        config = pipeline.config.with_name(f"seed-{seed}.yaml")
        config.write_text(yaml.safe_dump(lines), encoding="utf-8")
        configs.append(f"/pipelines/{config.relative_to(pipelines)}")
    run("chmod", "-R", "a+rX", str(folder))  # safetensors writes for the owner alone
    for file in folder.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(pipelines), "/pipelines"), encoding="utf-8")
    return configs


@pytest.fixture(scope="module")
def first(stack: Stack, configs: list[str]) -> Chaos:
    """The run in which machines and services die."""
    return Chaos(stack, stack.trigger({"config": configs[0]}))


@pytest.fixture(scope="module")
def second(stack: Stack, configs: list[str]) -> Chaos:
    """The run in which people interfere, MLflow goes away and the disk fills up."""
    return Chaos(stack, stack.trigger({"config": configs[1]}))


# --- the first run -----------------------------------------------------------------------


def test_gpu_worker_is_killed(first: Chaos) -> None:
    before = first.training()
    started_s = time.monotonic()
    first.sigkill("worker-gpu")
    step = first.resumed(before)
    assert first.heartbeat_timeouts() >= 1
    first.report("SIGKILL of the GPU worker", started_s, f"heartbeat time-out, resumed from step {step}")


def test_gpu_worker_hangs_for_longer_than_its_heartbeat(first: Chaos) -> None:
    before = first.training(after_step=first.checkpoint())
    old = first.steps("worker-gpu").keys()
    missed = first.heartbeat_timeouts()
    started_s = time.monotonic()
    first.docker("pause", "worker-gpu")
    try:
        first.wait("the heartbeat time-out", lambda: first.tasks()[TASK]["state"] != "running")
    finally:
        first.docker("unpause", "worker-gpu")
    awake_s = time.monotonic()
    first.wait("the old step to end", lambda: not old & first.steps("worker-gpu").keys(), 60)
    ended_s = time.monotonic() - awake_s
    step = first.resumed(before)
    assert first.heartbeat_timeouts() > missed
    first.report(
        "GPU worker hangs",
        started_s,
        f"heartbeat time-out, old step ended {ended_s:.0f} s after the worker woke, resumed from step {step}",
    )


def test_postgres_restarts(first: Chaos) -> None:
    before = first.training(after_step=first.checkpoint())
    started_s = time.monotonic()
    first.docker("restart", "postgres")
    for service in ("postgres", "mlflow", *AIRFLOW_SERVICES):
        first.stack.wait_until_healthy(service)
    after = first.training(after_step=first.checkpoint())
    assert after.number == before.number, "the training was interrupted"
    first.report("Postgres restart", started_s, f"the same try went on, to step {after.checkpoint} by then")


def test_scheduler_is_killed(first: Chaos) -> None:
    before = first.training()
    started_s = time.monotonic()
    first.sigkill("scheduler")
    first.stack.wait_until_healthy("scheduler")
    recovered_s = time.monotonic() - started_s
    first.wait("the training to end", lambda: first.tasks()[TASK]["state"] not in ("running", "queued"))
    task = first.tasks()[TASK]
    assert (task["state"], task["try_number"]) == ("success", before.number), "the training was interrupted"
    first.report(
        "SIGKILL of the scheduler", time.monotonic() - recovered_s, "the same try went on to its end"
    )


def test_first_run_ends_as_if_nothing_had_happened(first: Chaos) -> None:
    first.end(champion=1, labels=LABELS)


# --- the second run ----------------------------------------------------------------------


def test_training_is_marked_failed_by_hand(second: Chaos) -> None:
    before = second.training()
    old = second.steps("worker-gpu").keys()
    started_s = time.monotonic()
    path = f"/dags/{DAG}/dagRuns/{second.run_id}/taskInstances/{TASK}"
    second.stack.airflow("PATCH", path, {"new_state": "failed"})
    second.wait("the step to end", lambda: not old & second.steps("worker-gpu").keys(), 60)
    gone_s = time.monotonic() - started_s
    assert gone_s < 30
    second.stack.airflow(
        "POST",
        f"/dags/{DAG}/clearTaskInstances",
        {
            "dry_run": False,
            "dag_run_id": second.run_id,
            "task_ids": [TASK],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        },
    )
    step = second.resumed(before)
    seen = f"its processes were gone after {gone_s:.0f} s; cleared, it resumed from step {step}"
    second.report("marked failed by hand", started_s, seen)


def test_mlflow_is_away_for_two_minutes(second: Chaos) -> None:
    before = second.training(after_step=second.checkpoint())
    second.docker("stop", "mlflow")
    time.sleep(120)
    second.docker("start", "mlflow")
    started_s = time.monotonic()
    after = second.training(after_step=second.checkpoint())
    waited = after.number == before.number
    seen = "the training waited, and went on" if waited else f"went on as try {after.number}"
    second.report("MLflow away for two minutes", started_s, f"{seen}, to step {after.checkpoint} by then")


def test_disk_is_full(second: Chaos) -> None:
    before = second.training()
    filler = f"{HOME}/filler"
    second.on_disk("dd", "if=/dev/zero", f"of={filler}", "bs=1M", check=False)
    second.wait("the try to fail", lambda: second.tasks()[TASK]["state"] == "up_for_retry")
    errors = re.findall(r"^error: (.*)", second.log(before.number), re.MULTILINE)
    written = second.on_disk("find", f"{HOME}/work", "-name", "adapter", "-o", "-name", ".*partial*")
    second.on_disk("rm", filler)
    started_s = time.monotonic()
    assert errors == [f"{HOME}: expected room to write, got a full disk (0 MB free)"]
    assert written == "", "something was left half-written"
    step = second.resumed(before)
    second.report("disk full, then freed", started_s, f"error: {errors[0]}; resumed from step {step}")


def test_second_run_ends_as_if_nothing_had_happened(second: Chaos) -> None:
    second.end(champion=2, labels=LABELS - {"evaluate_aligned", "train_safety_adapter"})
