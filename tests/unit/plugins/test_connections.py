from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.sdk.exceptions import AirflowFailException

from safemerge_airflow import connections
from safemerge_airflow.connections import HuggingFaceHook, MlflowHook, step_environment
from safemerge_airflow.operators import CloseRunOperator
from safemerge_airflow.provider import provider_info


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a connection as Airflow reads it from the environment."""

    def make(conn_id: str, **fields: Any) -> None:
        fields = {"conn_type": "mlflow", **fields}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))

    return make


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"host": "https://mlflow.example.org/"}, {"MLFLOW_TRACKING_URI": "https://mlflow.example.org"}),
        ({"host": "mlflow", "port": 5000, "schema": "http"}, {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}),
        ({"host": "mlflow"}, {"MLFLOW_TRACKING_URI": "https://mlflow"}),
        (
            {"host": "https://m", "login": "robot", "password": "secret"},
            {
                "MLFLOW_TRACKING_URI": "https://m",
                "MLFLOW_TRACKING_USERNAME": "robot",
                "MLFLOW_TRACKING_PASSWORD": "secret",
            },
        ),
        (
            {"host": "https://m", "extra": {"token": "t"}},
            {"MLFLOW_TRACKING_URI": "https://m", "MLFLOW_TRACKING_TOKEN": "t"},
        ),
    ],
)
def test_an_mlflow_connection_becomes_what_the_client_reads(
    connect: Any, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    connect("tracking", **fields)
    assert MlflowHook("tracking").environment() == expected


def test_an_mlflow_connection_needs_a_host(connect: Any) -> None:
    connect("tracking", login="robot")
    with pytest.raises(AirflowFailException, match="connection tracking: expected a host"):
        MlflowHook("tracking").environment()


def test_a_password_needs_a_login(connect: Any) -> None:
    connect("tracking", host="https://m", password="secret")  # noqa: S106
    with pytest.raises(AirflowFailException, match="expected a login beside the password, got none"):
        MlflowHook("tracking").environment()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"password": "hf_x"}, {"HF_TOKEN": "hf_x"}),
        (
            {"password": "hf_x", "host": "hub.example.org"},
            {"HF_TOKEN": "hf_x", "HF_ENDPOINT": "https://hub.example.org"},
        ),
    ],
)
def test_a_hub_connection_becomes_what_the_hub_client_reads(
    connect: Any, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    connect("hub", **fields)
    assert HuggingFaceHook("hub").environment() == expected


def test_a_hub_connection_needs_a_token(connect: Any) -> None:
    connect("hub", host="https://hub.example.org")
    with pytest.raises(AirflowFailException, match="connection hub: expected an access token as password"):
        HuggingFaceHook("hub").environment()


def test_without_settings_nothing_is_added() -> None:
    assert step_environment() == {}


def test_a_step_gets_what_the_named_connections_say(
    connect: Any, command: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("tracking", host="https://m")
    connect("hub", password="hf_x")  # noqa: S106
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__MLFLOW_CONN_ID", "tracking")
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__HUGGINGFACE_CONN_ID", "hub")
    assert step_environment() == {"MLFLOW_TRACKING_URI": "https://m", "HF_TOKEN": "hf_x"}
    monkeypatch.setattr(CloseRunOperator, "command", lambda _: command)
    monkeypatch.setattr(CloseRunOperator, "step", "environment")
    operator = CloseRunOperator(task_id="t", run_id="1")
    context: Any = {"ti": _Silent()}
    result = operator.run_step(context)
    assert result.figures == {"MLFLOW_TRACKING_URI": "https://m", "HF_TOKEN": "hf_x"}


class _Silent:
    def xcom_push(self, key: str, value: Any) -> None:
        pass


def test_the_provider_is_described_as_airflow_asks() -> None:
    schema = Path(airflow.__path__[0]) / "provider_info.schema.json"
    jsonschema.validate(provider_info(), json.loads(schema.read_text(encoding="utf-8")))


def test_airflow_finds_the_provider_where_the_package_is_installed() -> None:
    (entry,) = [
        e
        for e in metadata.entry_points(group="apache_airflow_provider")
        if e.name == "provider_info" and e.dist is not None and e.dist.name == "safemerge"
    ]
    assert entry.load() is provider_info


def test_every_setting_that_is_read_is_described() -> None:
    """And none that is not."""
    described = provider_info()["config"]["safemerge"]["options"].keys()
    source = "".join(path.read_text() for path in Path(connections.__file__).parent.glob("*.py"))
    read = set(re.findall(r'conf\.get\(\s*"safemerge", "(\w+)"', source)) | connections.HOOKS.keys()
    assert described == read
