"""MLflow and the Hugging Face Hub as Airflow connections, handed to steps in their environment.

A deployment that keeps its secrets in Airflow names the connections in its configuration; one
that keeps them in the workers' environment names none, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import BaseHook, conf
from airflow.sdk.exceptions import AirflowFailException


class MlflowHook(BaseHook):
    """An MLflow tracking server: address, and login with password or a token.

    Args:
        mlflow_conn_id: id of the connection.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    def environment(self) -> dict[str, str]:
        """What MLflow's client reads.

        Raises:
            AirflowFailException: the connection names no host, or no user for its password.
        """
        connection = self.get_connection(self.mlflow_conn_id)
        if not connection.host:
            raise AirflowFailException(
                f"connection {self.mlflow_conn_id}: expected a host, such as mlflow.example.org, got none"
            )
        if connection.password and not connection.login:
            raise AirflowFailException(
                f"connection {self.mlflow_conn_id}: expected a login beside the password, got none"
            )
        found = {
            "MLFLOW_TRACKING_URI": _address(connection),
            "MLFLOW_TRACKING_USERNAME": connection.login,
            "MLFLOW_TRACKING_PASSWORD": connection.password,
            "MLFLOW_TRACKING_TOKEN": connection.extra_dejson.get("token"),
        }
        return {name: value for name, value in found.items() if value}

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Fields of the connection's form."""
        return {
            "hidden_fields": [],
            "relabeling": {"schema": "Scheme"},
            "placeholders": {
                "host": "https://mlflow.example.org",
                "extra": '{"token": "…"} in place of a login',
            },
        }


class HuggingFaceHook(BaseHook):
    """The Hugging Face Hub: the access token as password, and a host where it is not the public hub.

    Args:
        huggingface_conn_id: id of the connection.
    """

    conn_name_attr = "huggingface_conn_id"
    default_conn_name = "huggingface_default"
    conn_type = "huggingface"
    hook_name = "Hugging Face Hub"

    def __init__(self, huggingface_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.huggingface_conn_id = huggingface_conn_id

    def environment(self) -> dict[str, str]:
        """What huggingface_hub reads.

        Raises:
            AirflowFailException: the connection holds no token.
        """
        connection = self.get_connection(self.huggingface_conn_id)
        if not connection.password:
            raise AirflowFailException(
                f"connection {self.huggingface_conn_id}: expected an access token as password, got none"
            )
        found = {"HF_TOKEN": connection.password}
        return found | ({"HF_ENDPOINT": _address(connection)} if connection.host else {})

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Fields of the connection's form."""
        return {
            "hidden_fields": ["login", "schema", "port", "extra"],
            "relabeling": {"password": "Access token"},
            "placeholders": {"password": "hf_…", "host": "https://huggingface.co"},
        }


HOOKS: Mapping[str, type[MlflowHook | HuggingFaceHook]] = {
    "mlflow_conn_id": MlflowHook,
    "huggingface_conn_id": HuggingFaceHook,
}
"""Settings of section ``[safemerge]`` that name a connection, and what reads it."""


def step_environment() -> dict[str, str]:
    """What the connections that the configuration names add to the environment of a step."""
    found: dict[str, str] = {}
    for setting, hook in HOOKS.items():
        if conn_id := conf.get("safemerge", setting, fallback=None):
            found |= hook(conn_id).environment()
    return found


def _address(connection: Any) -> str:
    host = str(connection.host).rstrip("/")
    if "://" in host:
        return host
    port = f":{connection.port}" if connection.port else ""
    return f"{connection.schema or 'https'}://{host}{port}"
