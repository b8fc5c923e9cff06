"""MLflow's own server code over a database of the tests', asked without a network."""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from airflow.api_fastapi.app import create_auth_manager, purge_cached_app
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from safemerge.tracking.ledger import Ledger
from safemerge_airflow.page import app as page
from safemerge_airflow.page.access import Readable, readable_dags
from safemerge_airflow.page.history import History
from safemerge_airflow.page.mlflow_api import MlflowApi
from safemerge_airflow.page.unopened import UnopenedRun, unopened_runs
from tests.unit.tracking.conftest import migrated_database

__all__ = ["migrated_database"]

REPOSITORY = Path(__file__).resolve().parents[4]
ALL = Readable(frozenset(), all_dags=True)


class Mlflow(NamedTuple):
    """A tracking server that a test may fill."""

    ledger: Ledger
    transport: httpx.WSGITransport

    def history(self) -> History:
        return History(lambda: MlflowApi({"MLFLOW_TRACKING_URI": "http://localhost:5000"}, self.transport))


@pytest.fixture
def mlflow(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    with warnings.catch_warnings():
        # With the first search MLflow imports what Starlette is about to drop.
        warnings.simplefilter("ignore")
        importlib.import_module("starlette.middleware.wsgi")
    from mlflow.server import app, handlers
    from mlflow.tracking._model_registry import utils as registry
    from mlflow.tracking._tracking_service import utils as tracking

    # A server makes its stores those of its process; other tests of this one have their own.
    monkeypatch.setattr(registry, "_registry_uri", None)
    monkeypatch.setattr(tracking, "_tracking_uri", None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, "")  # put back as it was, whatever the server sets
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for store in ("_tracking_store", "_model_registry_store"):
        monkeypatch.setattr(handlers, store, None)
    handlers.initialize_backend_stores(address, address, str(tmp_path / "artifacts"))
    return Mlflow(Ledger(address), httpx.WSGITransport(app))


@pytest.fixture
def visit() -> Iterator[Any]:
    """Makes a visitor of the page: who they are, what they may see, and what MLflow the page reads."""
    create_auth_manager()

    def make(
        history: History | None = None,
        role: str | None = "viewer",
        readable: Readable = ALL,
        unopened: Sequence[UnopenedRun] = (),
    ) -> TestClient:
        page.app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="x", role=role)
        page.app.dependency_overrides[readable_dags] = lambda: readable
        page.app.dependency_overrides[unopened_runs] = lambda: list(unopened)
        page.app.dependency_overrides[page.history] = lambda: history
        return TestClient(page.app, headers={"Accept": "text/html"})

    yield make
    page.app.dependency_overrides.clear()
    purge_cached_app()
