"""Airflow and MLflow for a whole DAG run: SQLite files and an MLflow server of the test's own.

The demo's own services are used, so that what is tested is what ``make demo`` runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from safemerge.demo.services import DemoHome, mlflow_service, start_mlflow


class Deployment(NamedTuple):
    """A running MLflow, and the environment in which Airflow knows it."""

    mlflow_url: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def airflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Airflow's SQLite file, migrated; copied by every deployment."""
    home = DemoHome(tmp_path_factory.mktemp("airflow"))
    subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env=home.environment("sqlite://"),
        check=True,
        capture_output=True,
    )
    return home.airflow_database


@pytest.fixture
def deployment(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A fresh deployment; its two databases are made at the same time."""
    home = DemoHome(tmp_path / "deployment")
    try:
        with ThreadPoolExecutor() as pool:
            mlflow = pool.submit(start_mlflow, home, 0)
            migrated: Path = request.getfixturevalue("airflow_database")
            home.airflow_database.parent.mkdir(parents=True)
            shutil.copyfile(migrated, home.airflow_database)
            url = mlflow.result()
        yield Deployment(url, home.environment(url) | {"OMP_NUM_THREADS": "1"})
    finally:
        mlflow_service(home).stop()
