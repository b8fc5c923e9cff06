"""What benchmarks ask Airflow's REST API, and the times that its records tell."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from datetime import datetime
from typing import Any

from measuring import Json

from safemerge.demo.services import DemoHome, airflow_password

PAGE = 100
"""Most rows that Airflow's REST API gives at once."""


class Api:
    """Asks as the user that standalone made."""

    def __init__(self, url: str, home: DemoHome) -> None:
        self._url = url
        self._token: str | None = None
        user, password = airflow_password(home) or ("", "")
        self._token = self.ask("/auth/token", {"username": user, "password": password})["access_token"]

    def ask(self, path: str, body: Json | None = None) -> Any:
        """Answer to a GET, or to a POST where there is a body."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._token}"} if self._token else {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers)  # noqa: S310 (our own)
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return json.load(answer)

    def rows(self, path: str, key: str) -> list[Json]:
        """All rows of a listing."""
        found: list[Json] = []
        while True:
            mark = "&" if "?" in path else "?"
            page = self.ask(f"{path}{mark}limit={PAGE}&offset={len(found)}")
            found += page[key]
            if len(found) >= page["total_entries"] or not page[key]:
                return found


def tasks_of(api: Api, run: Json) -> list[Json]:
    """Every task of a run."""
    return api.rows(
        f"/api/v2/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances", "task_instances"
    )


def waited(ask: Any, count: int, timeout_s: float, every_s: float = 1) -> list[Any]:
    """The answer, once it has so many parts; an Airflow that is too busy to answer is asked again."""
    give_up_s = time.monotonic() + timeout_s
    answer: list[Any] = []
    while time.monotonic() < give_up_s:
        with contextlib.suppress(OSError):
            answer = ask()
        if len(answer) >= count:
            return answer
        time.sleep(every_s)
    raise SystemExit(f"expected {count} within {timeout_s:g} s, got {len(answer)}")


def scheduling(tasks: list[Json]) -> list[float]:
    """From the last end before a task was queued to that moment: how long its run stood still."""
    ends = sorted(moment(task["end_date"]) for task in tasks if task["end_date"])
    found = []
    for task in tasks:
        if task["queued_when"]:
            queued = moment(task["queued_when"])
            if before := [end for end in ends if end <= queued]:
                found.append(queued - before[-1])
    return found


def moment(text: str) -> float:
    """Seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def seconds(start: str, end: str) -> float:
    """Between two moments."""
    return moment(end) - moment(start)
