"""A page in Airflow's UI: pipelines, verdicts, champions and reports, read from MLflow.

It reads and never writes. ``app`` has the routes, all of them behind Airflow's login and
permissions, and ``serving`` loads them; ``access`` says which runs a user may see; ``history`` asks
MLflow; ``mlflow_api`` speaks its REST protocol, so that the api-server needs no MLflow library;
``unopened`` asks Airflow for runs that came to no record there; ``views`` and ``chart`` turn records into
what the templates show.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode, urlsplit

from airflow.sdk import conf

PREFIX = "/safemerge"
"""Where Airflow mounts the page."""


def airflow_path(path: str) -> str:
    """A path of Airflow's own, as a browser asks for it: the api-server may live below a path."""
    return urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/") + path


def page_path(path: str) -> str:
    """A path of the page, as a browser asks for it."""
    return airflow_path(PREFIX + path)


def login_path(path: str) -> str:
    """Where Airflow asks for a login, whoever keeps its users, and then leads back to a path of the page.

    The way back always begins with the page's own path, so it cannot lead to another site.
    """
    back = page_path("/" + quote(path.lstrip("/")))
    return airflow_path(f"/api/v2/auth/login?{urlencode({'next': back})}")


def framed_path(path: str) -> str:
    """A path of the page within Airflow's frame, as a browser asks for it."""
    return airflow_path(f"/plugin/safemerge{PREFIX}{path}")
