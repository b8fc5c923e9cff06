"""The pipeline under Compose: Celery workers that share no disk, and a champion at the end."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.compose.stack import AIRFLOW_SERVICES, ROOT, WORKERS, Stack, compose_command, run, wait_for

DEVICE_TASKS = {
    "train_safety_adapter",
    "train_task_adapter",
    "safemerge",
    *(f"evaluate.{arm}" for arm in ("aligned", "fine_tuned", "safemerge", "scale", "scale_selected")),
}
OTHER_TASKS = {"open_run", "tune.branch", "gate", "promote", "close_run"}
HEAVY = ("torch", "transformers", "peft", "trl", "lm_eval", "datasets", "accelerate", "mlflow", "numpy")


class DagRun(NamedTuple):
    """A run that has ended."""

    run_id: str
    state: str


@pytest.fixture(scope="module")
def dag_run(stack: Stack, tiny_config: str) -> DagRun:
    run_id = stack.trigger({"config": tiny_config})
    return DagRun(run_id, stack.wait_for_run(run_id))


def test_images_are_built_in_ten_minutes_and_hold_four_gigabytes(stack: Stack) -> None:
    assert stack.build_s < 600
    assert stack.image_bytes()["together"] < 4e9


def test_services_are_healthy_in_three_minutes(stack: Stack) -> None:
    assert stack.healthy_s < 180


def test_run_passes_over_rest(stack: Stack, dag_run: DagRun) -> None:
    tasks = stack.tasks(dag_run.run_id)
    failed = [name for name, task in tasks.items() if task["state"] == "failed"]
    logs = "\n".join(stack.task_log(dag_run.run_id, name)[-3000:] for name in failed)
    assert dag_run.state == "success", f"{failed}\n{logs}"
    done = {name for name, task in tasks.items() if task["state"] == "success"}
    assert done == DEVICE_TASKS | OTHER_TASKS
    # Nothing chooses its merge, and nobody is asked.
    others = {name: tasks[name]["state"] for name in tasks.keys() - done}
    assert {name.partition(".")[0] for name in others} == {"tune", "sign_off"}
    assert set(others.values()) == {"skipped"}
    assert {tasks[name]["try_number"] for name in done} == {1}
    stack.seen.append(f"{len(done)} tasks succeeded, each at the first try")


@pytest.mark.parametrize(
    ("names", "queue", "worker", "pool"),
    [(DEVICE_TASKS, "gpu", "worker-gpu", "gpu_pool"), (OTHER_TASKS, "default", "worker", "default_pool")],
    ids=["device", "other"],
)
def test_tasks_run_on_their_worker(
    stack: Stack, dag_run: DagRun, names: set[str], queue: str, worker: str, pool: str
) -> None:
    tasks = stack.tasks(dag_run.run_id)
    places = {(tasks[name]["queue"], tasks[name]["hostname"], tasks[name]["pool"]) for name in names}
    assert places == {(queue, worker, pool)}
    stack.seen.append(f"queue {queue}, host {worker}, pool {pool}: {', '.join(sorted(names))}")


def test_log_is_fetched_from_the_worker(stack: Stack, dag_run: DagRun) -> None:
    assert "safemerge step train" in stack.task_log(dag_run.run_id, "train_task_adapter")


def test_champion_is_set(stack: Stack, dag_run: DagRun) -> None:
    answer = stack.mlflow("/registered-models/alias?name=tiny-lora&alias=champion")
    assert answer.status_code == 200, answer.text
    version = answer.json()["model_version"]
    assert version["version"] == "1"
    stack.seen.append(f"MLflow: champion of {version['name']} is version {version['version']}")


def test_recipe_that_is_dropped_into_the_folder_is_a_dag(
    stack: Stack, dag_run: DagRun, recipes: Path, pipelines: Path
) -> None:
    pipeline = (pipelines / "tiny" / "pipeline.yaml").read_text(encoding="utf-8")
    # The same pipeline: its paths count from its own folder no longer.
    recipe = re.sub(r"\b((?:include_)?path: )", r"\g<1>/pipelines/tiny/", pipeline)
    (recipes / "bad.yaml").write_text(
        recipe.replace("name: tiny\n", "name: bad\nsteps: 3\n"), encoding="utf-8"
    )
    (recipes / "tiny.yaml").write_text(recipe, encoding="utf-8")
    started_s = time.monotonic()
    run_id = stack.trigger({}, dag="tiny")
    stack.seen.append(f"a recipe was a DAG after {time.monotonic() - started_s:.0f} s")
    assert stack.wait_for_run(run_id, dag="tiny") == "success"
    tasks = stack.tasks(run_id, dag="tiny")
    assert {task["state"] for task in tasks.values()} == {"skipped"}, "the champion came of the same inputs"
    assert tasks["open_run"]["hostname"] == "worker"


def test_bad_recipe_is_its_own_import_error_alone(stack: Stack) -> None:
    def errors() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = stack.airflow("GET", "/importErrors")["import_errors"]
        return found

    (error,) = wait_for("the import error", errors, 120)
    assert error["filename"] == "bad.yaml.py"
    assert "/recipes/bad.yaml: line" in error["stack_trace"]
    assert "steps: unknown key" in error["stack_trace"]


def test_page_of_releases_answers_those_who_are_logged_in(stack: Stack, dag_run: DagRun) -> None:
    assert stack.page("/", anonymous=True).status_code == 401
    assert stack.page("/pipelines/tiny", anonymous=True).status_code == 401
    answer = stack.page("/pipelines.json")
    assert answer.status_code == 200, answer.text
    (pipeline,) = answer.json()
    assert (pipeline["pipeline"], pipeline["verdict"], pipeline["champion"]) == ("tiny", "pass", "1")
    for path in ("/", "/pipelines/tiny", f"/runs/{pipeline['run_id']}/report.html"):
        answer = stack.page(path)
        assert answer.status_code == 200, f"{path}: {answer.text[:2000]}"
        assert answer.headers["content-type"].startswith("text/html")
    stack.seen.append("page of releases: verdict, champion and report shown; without a login refused (401)")


def test_mlflow_refuses_strangers(stack: Stack) -> None:
    path = "/registered-models/search"
    assert stack.mlflow(path, anonymous=True).status_code == 401
    assert stack.mlflow(path, host="elsewhere.example:5000").status_code == 403
    assert stack.mlflow(path).status_code == 200
    stack.seen.append("MLflow: anonymous request refused (401), foreign Host header refused (403)")


@pytest.mark.parametrize("service", AIRFLOW_SERVICES)
def test_no_machine_learning_library_outside_the_workers(stack: Stack, service: str) -> None:
    code = f"import importlib.util as u; print([m for m in {HEAVY!r} if u.find_spec(m)])"
    assert stack.execute(service, "python3", "-c", code) == "[]"


def test_workers_share_no_disk_and_change_nothing_they_were_given(stack: Stack) -> None:
    mounts = {worker: stack.inspect(worker)["Mounts"] for worker in WORKERS}
    written = {
        worker: {mount["Source"] for mount in found if mount["RW"]} for worker, found in mounts.items()
    }
    assert all(len(sources) == 2 for sources in written.values())
    assert set.isdisjoint(*written.values())
    read = {mount["Destination"] for found in mounts.values() for mount in found if not mount["RW"]}
    assert read == {"/pipelines", "/recipes"}
    stack.seen.append("workers: no disk in common but /pipelines and /recipes, which are read-only")


def test_workers_know_no_database(stack: Stack) -> None:
    secrets = {stack.settings[name] for name in ("AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD")}
    for worker in WORKERS:
        environment = "\n".join(stack.inspect(worker)["Config"]["Env"])
        assert [secret for secret in secrets if secret in environment] == []


@pytest.mark.parametrize("service", [*AIRFLOW_SERVICES, *WORKERS, "mlflow"])
def test_no_service_of_ours_runs_as_root(stack: Stack, service: str) -> None:
    assert stack.execute(service, "id", "-u") == "50000"


@pytest.mark.parametrize("service", ["airflow-init", "mlflow-init"])
def test_bootstrap_may_be_repeated(stack: Stack, service: str) -> None:
    run("docker", "start", "--attach", stack.container(service))


def test_compose_refuses_without_secrets(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("", encoding="utf-8")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    refused = subprocess.run(
        [*compose_command(), "--env-file", str(tmp_path / ".env"), "config", "--quiet"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert "run docker/make-env" in refused.stderr


def test_gpu_file_reserves_a_device_for_the_gpu_worker(stack: Stack) -> None:
    services = yaml.safe_load(stack.compose("-f", "docker-compose.gpu.yml", "config"))["services"]
    reserving = {name for name, service in services.items() if "deploy" in service}
    assert reserving == {"worker-gpu"}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
