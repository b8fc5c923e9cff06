"""A Compose project of the tests' own: secrets, ports, containers and volumes, all gone at the end.

Works with ``docker compose`` and with ``docker-compose`` 1.29.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from safemerge.demo.services import free_port

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW_SERVICES = ("api-server", "scheduler", "dag-processor", "triggerer")
WORKERS = ("worker", "worker-gpu")
SERVERS = (*AIRFLOW_SERVICES, *WORKERS, "mlflow", "postgres", "redis")
IMAGES = ("airflow", "worker", "mlflow")
DAG = "safemerge_pipeline"
HTTP_TIMEOUT_S = 60


def run(*command: str, check: bool = True) -> str:
    """Run a command in the checkout; returns what it wrote to stdout."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert done.returncode == 0 or not check, f"{' '.join(command)}:\n{said}"
    return done.stdout


def compose_command() -> list[str]:
    """Compose as a plugin of Docker, or the older program."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


def wait_for(what: str, condition: Callable[[], Any], timeout_s: float, every_s: float = 1) -> Any:
    """The condition's first true value."""
    give_up_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up_s, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(every_s)
    return value


class Stack:
    """The services of ``docker-compose.yml`` under a name of their own.

    Args:
        folder: where its ``.env`` is written.
        settings: lines of ``.env`` that are to differ from ``.env.example``.
        files: further Compose files, laid over the first.
    """

    def __init__(self, folder: Path, settings: dict[str, str], files: tuple[str, ...] = ()) -> None:
        self.project = f"safemerge-test-{os.getpid()}"
        self.env_file = folder / ".env"
        run("docker/make-env", str(self.env_file))
        self.settings = self._write({**self._own_settings(), **settings})
        self.seen: list[str] = []
        """What was measured, for the last screen."""
        self.build_s = self.healthy_s = float("nan")
        chosen = [argument for file in ("docker-compose.yml", *files) for argument in ("-f", file)]
        self._compose = [
            *(*compose_command(), "-p", self.project, "--env-file", str(self.env_file)),
            *chosen,
        ]

    @staticmethod
    def _own_settings() -> dict[str, str]:
        ports = {name: str(free_port(0)) for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "REDIS_PORT")}
        given = {"TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
        return {**ports, **given, "IMAGE_TAG": "compose-test", "HF_HUB_OFFLINE": "1"}

    def _write(self, changes: dict[str, str]) -> dict[str, str]:
        """Change lines of ``.env``; returns all of it."""
        text = self.env_file.read_text(encoding="utf-8")
        for name, value in changes.items():
            text, found = re.subn(rf"^{name}=.*$", lambda _: f"{name}={value}", text, flags=re.MULTILINE)  # noqa: B023
            assert found == 1, f"{name}: not in .env.example"
        self.env_file.write_text(text, encoding="utf-8")
        return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))

    # --- life ----------------------------------------------------------------------

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run a Compose command on this project."""
        return run(*self._compose, *arguments, check=check)

    def build(self) -> None:
        """Build the images; ``build_s`` says how long it took."""
        started_s = time.monotonic()
        self.compose("build")
        self.build_s = time.monotonic() - started_s

    def start(self) -> None:
        """Start everything; ``healthy_s`` says how long it took until all servers were healthy."""
        started_s = time.monotonic()
        self.compose("up", "-d")
        for service in SERVERS:
            self.wait_until_healthy(service)
        self.healthy_s = time.monotonic() - started_s

    def wait_until_healthy(self, service: str, timeout_s: float = 300) -> None:
        """Wait until a service's own health check passes."""

        def healthy() -> bool:
            state = self.inspect(service)["State"]
            return bool(state["Running"] and state["Health"]["Status"] == "healthy")

        try:
            wait_for(f"{service} to be healthy", healthy, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs(service)}") from None

    def remove(self) -> None:
        """Stop and remove containers, networks and volumes; whatever is left is an error."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        label = f"label=com.docker.compose.project={self.project}"
        for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
            assert run("docker", *kind, "--quiet", "--filter", label) == "", f"left behind: docker {kind}"

    # --- containers ------------------------------------------------------------------

    def container(self, service: str) -> str:
        """The id of a service's container, be it running or not."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What Docker knows of a service's container."""
        inspected: dict[str, Any] = json.loads(run("docker", "inspect", self.container(service)))[0]
        return inspected

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container; returns its output."""
        return run("docker", "exec", self.container(service), *command).strip()

    def logs(self, service: str, lines: int = 60) -> str:
        """The end of what a service wrote."""
        command = ["docker", "logs", "--tail", str(lines), self.container(service)]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout

    # --- Airflow and MLflow over HTTP -----------------------------------------------------

    def airflow(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask Airflow's REST API as its administrator; ``path`` counts from ``/api/v2``."""
        answer = requests.request(
            method,
            f"{self._airflow_url}/api/v2{path}",
            json=body,
            headers=self._login(),
            timeout=HTTP_TIMEOUT_S,
        )
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        return answer.json()

    def page(self, path: str, *, anonymous: bool = False) -> requests.Response:
        """Ask for a part of the page of releases in Airflow; ``path`` counts from ``/safemerge``."""
        return requests.get(
            f"{self._airflow_url}/safemerge{path}",
            headers={} if anonymous else self._login(),
            timeout=HTTP_TIMEOUT_S,
        )

    @property
    def _airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.settings['AIRFLOW_PORT']}"

    def _login(self) -> dict[str, str]:
        user = {
            "username": self.settings["AIRFLOW_ADMIN_USER"],
            "password": self.settings["AIRFLOW_ADMIN_PASSWORD"],
        }
        login = requests.post(f"{self._airflow_url}/auth/token", json=user, timeout=HTTP_TIMEOUT_S)
        login.raise_for_status()
        return {"Authorization": f"Bearer {login.json()['access_token']}"}

    def mlflow(self, path: str, *, anonymous: bool = False, host: str | None = None) -> requests.Response:
        """Ask MLflow's REST API as the workers do; ``path`` counts from ``/api/2.0/mlflow``."""
        return requests.get(
            f"http://127.0.0.1:{self.settings['MLFLOW_PORT']}/api/2.0/mlflow{path}",
            auth=None if anonymous else ("safemerge", self.settings["MLFLOW_WORKER_PASSWORD"]),
            headers={} if host is None else {"Host": host},
            timeout=HTTP_TIMEOUT_S,
        )

    def trigger(self, conf: dict[str, Any], dag: str = DAG) -> str:
        """Start a run of a DAG over the REST API, once it is there; returns its id."""

        def known() -> bool:
            return dag in [found["dag_id"] for found in self.airflow("GET", "/dags")["dags"]]

        wait_for(f"the DAG {dag}", known, 120)
        started = self.airflow("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})
        return str(started["dag_run_id"])

    def wait_for_run(self, run_id: str, dag: str = DAG, timeout_s: float = 1800) -> str:
        """The state in which a run ended."""

        def ended() -> str | None:
            state: str = self.airflow("GET", f"/dags/{dag}/dagRuns/{run_id}")["state"]
            return state if state in ("success", "failed") else None

        return str(wait_for(f"run {run_id}", ended, timeout_s, every_s=3))

    def tasks(self, run_id: str, dag: str = DAG) -> dict[str, dict[str, Any]]:
        """A run's task instances by task id."""
        found = self.airflow("GET", f"/dags/{dag}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def task_log(self, run_id: str, task_id: str, attempt: int = 1) -> str:
        """A task's log as Airflow shows it: the api-server fetches it from the worker."""
        path = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        return "\n".join(str(line.get("event", line)) for line in self.airflow("GET", path)["content"])

    # --- images --------------------------------------------------------------------------

    def image_bytes(self) -> dict[str, int]:
        """Size of each image, and of all ``together`` with shared layers counted once."""
        layers: dict[str, dict[str, int]] = {}
        for name in IMAGES:
            image = f"safemerge-{name}:{self.settings['IMAGE_TAG']}"
            lines = run(
                *("docker", "history", "--no-trunc", "--human=false"),
                *("--format", "{{.CreatedAt}} {{.CreatedBy}}\t{{.Size}}", image),
            ).splitlines()
            layers[name] = {made: int(size) for made, _, size in (line.rpartition("\t") for line in lines)}
        together = {made: size for image_layers in layers.values() for made, size in image_layers.items()}
        return {name: sum(sizes.values()) for name, sizes in (*layers.items(), ("together", together))}
