"""The few calls of MLflow's REST API that the page needs, all of them reading."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowException

from safemerge.errors import without_login
from safemerge_airflow.connections import MlflowHook

TIMEOUT = httpx.Timeout(10, connect=3)
"""Seconds: a page that waits longer is of no use to anyone."""

MODELS_AT_ONCE = 1000
"""As many as MLflow gives."""

Json = dict[str, Any]


class MlflowUnavailableError(Exception):
    """MLflow is not configured or does not answer; the message tells a person what to do."""


def connect() -> MlflowApi:
    """The server that the environment names, or the connection in ``[safemerge] mlflow_conn_id``.

    Raises:
        MlflowUnavailableError: neither names one, or there is no such connection.
    """
    conn_id = conf.get("safemerge", "mlflow_conn_id", fallback=None)
    if not conn_id:
        return MlflowApi(os.environ)
    try:
        return MlflowApi(os.environ | MlflowHook(conn_id).environment())
    except AirflowException as error:
        raise MlflowUnavailableError(f"[safemerge] mlflow_conn_id is {conn_id!r}: {error}") from error


class MlflowApi:
    """One MLflow tracking server.

    Args:
        settings: address and login, by the names of MLflow's own environment variables.
        transport: how requests travel; None takes the network.

    Raises:
        MlflowUnavailableError: no server is named.
    """

    def __init__(self, settings: Mapping[str, str], transport: httpx.BaseTransport | None = None) -> None:
        address = settings.get("MLFLOW_TRACKING_URI", "")
        if not address.startswith(("http://", "https://")):
            shown = f"it is {without_login(address)!r}" if address else "it is not set"
            raise MlflowUnavailableError(
                "This page reads MLflow's server, and the api-server does not know where that is. Set "
                "MLFLOW_TRACKING_URI in the api-server's environment to the server's address, such as "
                f"http://mlflow:5000 ({shown}), with MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD where it asks for them, or name a connection of type mlflow in "
                "[safemerge] mlflow_conn_id; then restart the api-server."
            )
        self.address = without_login(address).rstrip("/")
        """As people are told it."""
        self._http = httpx.Client(
            base_url=address,
            timeout=TIMEOUT,
            headers=_headers(settings),
            auth=_auth(settings),
            verify=_verify(settings),
            transport=transport,
        )

    def search_experiments(self, page_token: str | None = None) -> Json:
        """One page of all experiments."""
        return self._post("experiments/search", {"max_results": 1000, "page_token": page_token})

    def search_runs(
        self, experiment_ids: list[str], filter_string: str, max_results: int, page_token: str | None = None
    ) -> Json:
        """One page of runs, the newest first."""
        asked = {
            "experiment_ids": experiment_ids,
            "filter": filter_string,
            "max_results": max_results,
            "order_by": ["attributes.start_time DESC"],
            "page_token": page_token,
        }
        return self._post("runs/search", asked)

    def run(self, run_id: str) -> Json | None:
        """One run; None where there is none."""
        found = self._get("runs/get", {"run_id": run_id})
        return None if found is None else found["run"]

    def registered_models(self, page_token: str | None = None) -> Json:
        """One page of all registered models, with their aliases."""
        asked: dict[str, str | int] = {"max_results": MODELS_AT_ONCE}
        if page_token is not None:
            asked["page_token"] = page_token
        return self._get("registered-models/search", asked) or {}

    def version_by_alias(self, name: str, alias: str) -> Json | None:
        """The version of a registered model that an alias points to; None where there is none."""
        # MLflow calls an alias that is not set an invalid parameter.
        missing = (httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST)
        found = self._get("registered-models/alias", {"name": name, "alias": alias}, missing)
        return None if found is None else found["model_version"]

    def model_versions(self, name: str, max_results: int) -> Json:
        """Versions of a registered model, the newest first."""
        asked: dict[str, str | int] = {
            "filter": f"name = {_quoted(name)}",
            "max_results": max_results,
            "order_by": "creation_timestamp DESC",
        }
        return self._get("model-versions/search", asked) or {}

    @contextmanager
    def artifact(self, run_id: str, path: str) -> Iterator[httpx.Response | None]:
        """A run's artifact, its body still to be read; None where there is none."""
        request = self._http.build_request("GET", "/get-artifact", params={"run_uuid": run_id, "path": path})
        response = self._send(request, stream=True)
        try:
            yield None if response.status_code == httpx.codes.NOT_FOUND else self._checked(response)
        finally:
            response.close()

    def _post(self, method: str, body: Json) -> Json:
        body = {key: value for key, value in body.items() if value is not None}
        request = self._http.build_request("POST", f"/api/2.0/mlflow/{method}", json=body)
        return self._json(self._send(request))

    def _get(
        self,
        method: str,
        params: dict[str, str | int],
        missing: tuple[int, ...] = (httpx.codes.NOT_FOUND,),
    ) -> Json | None:
        response = self._send(self._http.build_request("GET", f"/api/2.0/mlflow/{method}", params=params))
        return None if response.status_code in missing else self._json(response)

    def _send(self, request: httpx.Request, stream: bool = False) -> httpx.Response:
        try:
            return self._http.send(request, stream=stream)
        except httpx.HTTPError as error:
            raise MlflowUnavailableError(
                f"MLflow at {self.address} does not answer: {error or type(error).__name__}. Pipelines go on "
                "where they can; this page shows their records again when MLflow is back."
            ) from error

    def _json(self, response: httpx.Response) -> Json:
        try:
            answer: Json = self._checked(response).json()
            if not isinstance(answer, dict):
                raise ValueError(f"expected an object, got {answer!r}")
        except ValueError as error:
            raise MlflowUnavailableError(
                f"What answers at {self.address} is not MLflow: expected an object in JSON from "
                f"{response.request.url.path}, got {response.headers.get('content-type', 'something else')}."
            ) from error
        return answer

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise MlflowUnavailableError(
                f"MLflow at {self.address} refuses this page (status {response.status_code}). Check "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the api-server, and that "
                "MLflow's --allowed-hosts names the host of that address."
            )
        if response.status_code != httpx.codes.OK:
            raise MlflowUnavailableError(
                f"MLflow at {self.address} answered with status {response.status_code} to "
                f"{response.request.url.path}; its log says why."
            )
        return response


def _quoted(text: str) -> str:
    """A text in a filter; MLflow's language has no escapes, so it cannot hold both quotes."""
    if "'" not in text:
        return f"'{text}'"
    return '"{}"'.format(text.replace('"', ""))


def _auth(settings: Mapping[str, str]) -> tuple[str, str] | None:
    user = settings.get("MLFLOW_TRACKING_USERNAME")
    return (user, settings.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _headers(settings: Mapping[str, str]) -> dict[str, str]:
    token = settings.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and not _auth(settings) else {}


def _verify(settings: Mapping[str, str]) -> bool | str:
    if settings.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return False
    return settings.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
