"""The page of verdicts in Airflow's UI: the entry point ``airflow.plugins``.

Scheduler, workers and every task process load this module too: the page itself is loaded by
the api-server, with the first request.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from safemerge_airflow.page import PREFIX, PageApp, page_path


class SafemergePlugin(AirflowPlugin):
    """Serves the page under ``/safemerge`` and shows it in Airflow's frame, from its navigation."""

    name = "safemerge"
    fastapi_apps: ClassVar[list[Any]] = [{"app": PageApp(), "url_prefix": PREFIX, "name": "safemerge"}]
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Releases",
            "href": page_path("/"),
            "destination": "nav",
            "url_route": "safemerge",
            "nav_top_level": True,
            "icon": page_path("/icon.svg"),
            "icon_dark_mode": page_path("/icon-dark.svg"),
        }
    ]
