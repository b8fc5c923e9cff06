"""Airflow is told of a rollback: who asks, which asset, what the event carries, and what may go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from safemerge.errors import AirflowApiError, ConfigError
from safemerge.pipeline.announcing import ChampionAsset
from safemerge.pipeline.rolling_back import rollback
from safemerge.tracking.ledger import Ledger, PipelineRun
from tests.unit.pipeline.test_rolling_back import NAME, champion, release


class Airflow(ThreadingHTTPServer):
    """As much of Airflow's REST API as is asked for, over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None, Any]] = []
        """Path, token and body of each request."""
        self.refused = ""
        """A path that is answered with an error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/auth/token":
            return {"access_token": "of bob"}
        # The pattern that was asked for matches more than one.
        return {"assets": [{"id": 7, "name": f"x{NAME}@champion"}, {"id": 8, "name": f"{NAME}@champion"}]}


class Handler(BaseHTTPRequestHandler):
    server: Airflow

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else self.path.partition("?")[2]
        self.server.asked.append((path, self.headers.get("Authorization"), body))
        self.send_response(403 if path == self.server.refused else 200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.answer(path)).encode())

    do_POST = do_GET  # noqa: N815 - the library's name

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    monkeypatch.delenv("AIRFLOW_TOKEN", raising=False)
    monkeypatch.setenv("AIRFLOW_USER", "bob")
    monkeypatch.setenv("AIRFLOW_PASSWORD", "secret")
    with Airflow() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def asked(ledger: Ledger, run: PipelineRun, tmp_path: Path, airflow: Airflow) -> dict[str, Any]:
    """Two champions, and a rollback that tells Airflow."""
    for digest in ("a", "b"):
        release(ledger, run, tmp_path, digest)
    return {"reason": "bad", "by": "bob", "tracking_uri": ledger.tracking_uri, "airflow": airflow.url}


def test_a_rollback_is_an_event_of_the_champions_asset(
    ledger: Ledger, run: PipelineRun, airflow: Airflow, asked: dict[str, Any]
) -> None:
    rollback(NAME, **asked)
    assert champion(ledger.champions) == "1"
    login, looked, told = airflow.asked
    assert login == ("/auth/token", None, {"username": "bob", "password": "secret"})
    assert looked == ("/api/v2/assets", "Bearer of bob", "name_pattern=tiny-lora%40champion&limit=100")
    extra = {
        "version": "1",
        "model": "models:/tiny-lora/1",
        "adapter_digest": "a",
        "verdict": "pass",
        "run_id": run.run_id,
        "rollback": {"from_version": "2", "by": "bob", "reason": "bad"},
    }
    assert told == ("/api/v2/assets/events", "Bearer of bob", {"asset_id": 8, "extra": extra})


def test_a_dry_run_asks_and_tells_nothing(airflow: Airflow, asked: dict[str, Any]) -> None:
    rollback(NAME, dry_run=True, **asked)
    assert [path for path, *_ in airflow.asked] == ["/auth/token", "/api/v2/assets"]


def test_nothing_is_moved_where_airflow_could_not_be_told(
    ledger: Ledger, airflow: Airflow, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.refused = "/api/v2/assets"
    with pytest.raises(AirflowApiError, match=r"GET /api/v2/assets: refused with 403 \{"):
        rollback(NAME, **asked)
    with pytest.raises(AirflowApiError, match=r"http://127.0.0.1:9: POST /auth/token: expected Airflow's"):
        rollback(NAME, **asked | {"airflow": "http://127.0.0.1:9"})
    monkeypatch.delenv("AIRFLOW_PASSWORD")
    with pytest.raises(ConfigError, match="expected AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD, in"):
        rollback(NAME, **asked)
    assert champion(ledger.champions) == "2"


def test_what_was_moved_is_said_where_airflow_was_not_told(
    ledger: Ledger, airflow: Airflow, asked: dict[str, Any]
) -> None:
    airflow.refused = "/api/v2/assets/events"
    with pytest.raises(
        AirflowApiError, match=r"models:/tiny-lora/1 is the champion, but Airflow was not told: .* 403"
    ):
        rollback(NAME, **asked)
    assert champion(ledger.champions) == "1"


def test_a_token_stands_for_a_login(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", "given")
    ChampionAsset(f"{airflow.url}/", NAME)
    assert [(path, token) for path, token, _ in airflow.asked] == [("/api/v2/assets", "Bearer given")]


def test_an_asset_or_address_that_cannot_be_used_is_named(airflow: Airflow) -> None:
    with pytest.raises(
        AirflowApiError, match="expected the asset other@champion, which a recipe's DAG brings"
    ):
        ChampionAsset(airflow.url, "other")
    with pytest.raises(ConfigError, match="Airflow's address: expected http://… or https://…, got airflow"):
        ChampionAsset("airflow", NAME)
