"""How the api-server gets the page."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from airflow.api_fastapi.app import create_auth_manager, purge_cached_app
from fastapi import FastAPI
from fastapi.testclient import TestClient

from safemerge_airflow.page import app as page
from safemerge_airflow.page import serving
from safemerge_airflow.plugin import SafemergePlugin


def started(app: FastAPI) -> TestClient:
    """Start the app as Airflow does, and wait until the page is loaded."""
    client = TestClient(app, raise_server_exceptions=False)
    client.__enter__()
    for thread in threading.enumerate():
        if thread.name == "safemerge-page-start":
            thread.join()
    return client


@pytest.fixture(autouse=True)
def auth_manager() -> Iterator[None]:
    create_auth_manager()
    yield
    purge_cached_app()


def test_the_page_is_prepared_before_anyone_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Asked:
        def recent_runs(self) -> None:
            asked.append("runs")

        def champions(self) -> None:
            asked.append("champions")

    monkeypatch.setattr(page, "_history", Asked())
    page.templates.cache.clear()
    (mounted,) = SafemergePlugin().fastapi_apps
    started(mounted["app"]).__exit__()
    assert asked == ["runs", "champions"]
    assert len(page.templates.cache) == len(page.templates.list_templates()) > 3


def test_requests_reach_the_page_behind_its_login() -> None:
    client = started(serving.page)
    assert client.get("/").status_code == 401
    assert client.get("/nothing/there").status_code == 404
    assert client.get("/docs").status_code == 401
    client.__exit__()


def test_a_page_that_cannot_be_prepared_takes_nothing_else_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no template")

    monkeypatch.setattr(page, "warm_up", fail)
    with caplog.at_level(logging.ERROR):
        client = started(serving.page)
    assert client.get("/").status_code == 401
    client.__exit__()
    assert "the page could not be prepared" in caplog.text
    assert "no template" in caplog.text


def test_an_mlflow_that_is_away_is_no_fault_of_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with caplog.at_level(logging.ERROR):
        started(serving.page).__exit__()
    assert "could not be prepared" not in caplog.text
