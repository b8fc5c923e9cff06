"""Tell an Airflow that a champion is another one, over its REST API, so that deployments follow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from safemerge.errors import AirflowApiError, ConfigError
from safemerge.tracking.champions import champion_of

TIMEOUT_S = 30


class ChampionAsset:
    """The asset of a registered model's champion in an Airflow, which is asked for it at once.

    Who we are stands in the environment: ``AIRFLOW_TOKEN``, or ``AIRFLOW_USER`` and ``AIRFLOW_PASSWORD``.

    Args:
        address: of Airflow, such as ``https://airflow.example.org``.
        model: the registered model.

    Raises:
        ConfigError: the address or the login cannot be used.
        AirflowApiError: Airflow cannot be reached, refuses, or has no such asset.
    """

    def __init__(self, address: str, model: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"Airflow's address: expected http://… or https://…, got {address}")
        self.address = address.rstrip("/")
        self.name = champion_of(model)
        self._headers: dict[str, str] = {}  # the login, which asks Airflow too, goes without
        self._headers = {"Authorization": f"Bearer {os.environ.get('AIRFLOW_TOKEN') or self._login()}"}
        # The pattern may find others, too: in it _ and % stand for any letters.
        found = self._ask("GET", "/api/v2/assets", params={"name_pattern": self.name, "limit": "100"})
        ids = [asset["id"] for asset in found.get("assets", ()) if asset["name"] == self.name]
        if not ids:
            raise AirflowApiError(
                f"{self.address}: expected the asset {self.name}, which a recipe's DAG brings, got none"
            )
        self._id = ids[0]

    def announce(self, extra: Mapping[str, Any]) -> None:
        """Add an event to the asset: DAGs that have it as their schedule run.

        Raises:
            AirflowApiError: Airflow cannot be reached, or refuses.
        """
        self._ask("POST", "/api/v2/assets/events", json={"asset_id": self._id, "extra": dict(extra)})

    def _login(self) -> str:
        user, password = os.environ.get("AIRFLOW_USER"), os.environ.get("AIRFLOW_PASSWORD")
        if not user or not password:
            raise ConfigError(
                f"login at {self.address}: expected AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD, in "
                "the environment, got neither"
            )
        answer = self._ask("POST", "/auth/token", json={"username": user, "password": password})
        return str(answer.get("access_token"))

    def _ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        import httpx

        try:
            answer = httpx.request(
                method, self.address + path, headers=self._headers, timeout=TIMEOUT_S, **body
            ).raise_for_status()
            found: dict[str, Any] = answer.json()
        except httpx.HTTPStatusError as error:
            got = f"{error.response.status_code} {error.response.text[:300]}"
            raise AirflowApiError(f"{self.address}: {method} {path}: refused with {got}") from error
        except (httpx.HTTPError, ValueError) as error:
            got = str(error) or type(error).__name__
            raise AirflowApiError(
                f"{self.address}: {method} {path}: expected Airflow's answer, got: {got}"
            ) from error
        return found
