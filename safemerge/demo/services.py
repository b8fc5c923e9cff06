"""The demo's MLflow and Airflow on 127.0.0.1, over one folder of SQLite files.

Started detached, so that they outlive the command that started them, and found again
by a small state file. Nothing here is meant for production.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safemerge.errors import ConfigError, StepError
from safemerge.pipeline.workspace import HOME_VARIABLE, Workspace
from safemerge.storage.atomic import atomic_file

HOST = "127.0.0.1"
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 30
ANSWER_TIMEOUT_S = 20
"""A server on a busy machine is not taken for one that does not run: another would be started beside it."""
DAG_BUNDLE = "airflow.dag_processing.bundles.local.LocalDagBundle"
RECIPE_BUNDLE = "safemerge_airflow.recipe_bundle.RecipeBundle"


class DemoHome:
    """The demo's folder: models, databases, logs and the state of running services.

    Args:
        root: made where it does not exist.
        checkout: the folder that holds ``dags/`` and ``plugins/``.
    """

    def __init__(self, root: Path, checkout: Path | None = None) -> None:
        self.root = root.resolve()
        self.checkout = checkout or Path(__file__).resolve().parents[2]
        if not (self.checkout / "dags").is_dir():
            raise ConfigError(
                f"{self.checkout}: expected a checkout with dags/ and plugins/, got no dags/ there"
            )
        self.logs = self.root / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.recipes = self.root / "recipes"
        """Each YAML file in it is a DAG."""
        self.recipes.mkdir(exist_ok=True)
        self.pipeline = self.root / "pipeline.yaml"
        self.tuned_pipeline = self.root / "tuned.yaml"
        self.models = self.root / "models"
        self.adapters = self.root / "adapters"
        self.reports = self.root / "reports"
        self.workspace = Workspace(self.root / "workspace")

    def environment(self, mlflow_url: str, airflow_port: int = 8080) -> dict[str, str]:
        """The environment of every process of the demo."""
        airflow = self.root / "airflow"
        recipes = {"recipes": str(self.recipes), "refresh_interval": 30}
        bundles = [
            {"name": "dags-folder", "classpath": DAG_BUNDLE, "kwargs": {}},
            {"name": "recipes", "classpath": RECIPE_BUNDLE, "kwargs": recipes},
        ]
        settings = {
            "AIRFLOW_HOME": str(airflow),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.checkout / "dags"),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.checkout / "plugins"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(airflow / "bundles"),
            # Airflow often notices only with its next heartbeat, 5 s apart, that a skipped task has ended.
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{airflow / 'airflow.db'}",
            "AIRFLOW__API__HOST": HOST,
            "AIRFLOW__API__PORT": str(airflow_port),
            "AIRFLOW__API__BASE_URL": f"http://{HOST}:{airflow_port}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(airflow / "logs"),
            "MLFLOW_TRACKING_URI": mlflow_url,
            HOME_VARIABLE: str(self.workspace.home),
            "SAFEMERGE_CONFIG": str(self.pipeline),
            # The demo's models and data are on disk: nothing may wait for a hub.
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        return {
            **os.environ,
            **settings,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    @property
    def airflow_database(self) -> Path:
        """Airflow's SQLite file."""
        return self.root / "airflow" / "airflow.db"


class ServiceState(NamedTuple):
    """A server process, told apart from a later one that got the same number."""

    pid: int
    started_at: str
    url: str

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # reap it where it is ours, so that it does not look alive
        return _started_at(self.pid) == self.started_at != ""


class Service:
    """One server process, its state kept in ``<root>/<name>.json``."""

    def __init__(self, home: DemoHome, name: str, health_path: str, stop_signal: signal.Signals) -> None:
        self.home = home
        self.name = name
        self.health_path = health_path
        self.stop_signal = stop_signal
        self.state_file = home.root / f"{name}.json"
        self.log_file = home.logs / f"{name}.log"

    @property
    def url(self) -> str | None:
        """Where it answers; None where it does not run."""
        state = self._state()
        return state.url if state and state.is_alive() and _answers(state.url + self.health_path) else None

    def start(self, command: list[str], port: int, environment: dict[str, str]) -> str:
        """Start it and wait until it answers.

        Raises:
            StepError: it ended, or did not answer in time; the message names its log.
        """
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        url = f"http://{HOST}:{port}"
        state = ServiceState(process.pid, _started_at(process.pid), url)
        with atomic_file(self.state_file, replace=True) as partial:
            partial.write_text(json.dumps(state._asdict()), encoding="utf-8")
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                self.state_file.unlink()
                raise StepError(f"{self.name} ended with code {process.returncode}; its log: {self.log_file}")
            if _answers(url + self.health_path):
                return url
            time.sleep(0.5)
        self.stop()
        raise StepError(
            f"{self.name} did not answer at {url} within {START_TIMEOUT_S} s; its log: {self.log_file}"
        )

    def stop(self) -> bool:
        """Stop it with all its child processes; False where it did not run."""
        state = self._state()
        was_alive = state is not None and state.is_alive()
        if state is not None and was_alive:
            os.killpg(state.pid, self.stop_signal)
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            while state.is_alive() and time.monotonic() < deadline_s:
                time.sleep(0.2)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(state.pid, signal.SIGKILL)  # what it left behind in its group
        self.state_file.unlink(missing_ok=True)
        return was_alive

    def _state(self) -> ServiceState | None:
        try:
            return ServiceState(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, TypeError, ValueError):
            return None


def pass_by_proxies() -> None:
    """Have this process, and those it starts, reach the servers themselves: no proxy can."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if hosts != ["*"] and HOST not in hosts:
            os.environ[name] = ",".join([*hosts, HOST])


def mlflow_service(home: DemoHome) -> Service:
    """MLflow's tracking server, artifacts proxied."""
    return Service(home, "mlflow", "/health", signal.SIGTERM)


def airflow_service(home: DemoHome) -> Service:
    """Airflow standalone: api-server, scheduler, dag-processor, triggerer."""
    # Airflow stops its components on SIGINT; SIGTERM would orphan them.
    return Service(home, "airflow", "/api/v2/monitor/health", signal.SIGINT)


def start_mlflow(home: DemoHome, port: int = 5000) -> str:
    """Start MLflow, or find it running; returns its URL."""
    service = mlflow_service(home)
    if url := service.url:
        return url
    port = free_port(port)
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{home.root / 'mlflow.db'}"),
        *("--artifacts-destination", str(home.root / "artifacts")),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]
    # MLflow's job runners are for its own evaluation service; here they would only take memory.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return service.start(command, port, environment)


def start_airflow(home: DemoHome, mlflow_url: str, port: int = 8080) -> str:
    """Start Airflow over the demo's database, or find it running; returns its URL."""
    service = airflow_service(home)
    if url := service.url:
        return url
    port = free_port(port)
    environment = home.environment(mlflow_url, port)
    prepare_airflow(home, environment)
    return service.start([sys.executable, "-m", "airflow", "standalone"], port, environment)


def prepare_airflow(home: DemoHome, environment: dict[str, str]) -> None:
    """Make Airflow's database and the pool that GPU work asks for, once."""
    if home.airflow_database.exists() and (home.root / "airflow" / "ready").exists():
        return
    log_file = home.logs / "airflow-setup.log"
    commands = (["db", "migrate"], ["pools", "set", "gpu_pool", "1", "One slot per device"])
    with log_file.open("ab") as log:
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "airflow", *command],
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
            )
            if done.returncode:
                raise StepError(
                    f"airflow {' '.join(command)} ended with code {done.returncode}; its log: {log_file}"
                )
    (home.root / "airflow" / "ready").touch()


def airflow_password(home: DemoHome) -> tuple[str, str] | None:
    """User and generated password of the Airflow UI; None before its first start."""
    path = home.root / "airflow" / "simple_auth_manager_passwords.json.generated"
    if not path.exists():
        return None
    user, password = next(iter(json.loads(path.read_text(encoding="utf-8")).items()))
    return user, password


@contextlib.contextmanager
def running_mlflow(home: DemoHome, port: int = 5000) -> Iterator[str]:
    """MLflow's URL; stopped at the end where it was started here."""
    was_running = mlflow_service(home).url is not None
    url = start_mlflow(home, port)
    try:
        yield url
    finally:
        if not was_running:
            mlflow_service(home).stop()


def free_port(preferred: int) -> int:
    """The preferred port, or any free one where it is taken."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StepError(f"no free port on {HOST}")


def _started_at(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]  # after the name, which may hold spaces


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as response:  # noqa: S310 - our own loopback URL
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError, OSError):
        return False
