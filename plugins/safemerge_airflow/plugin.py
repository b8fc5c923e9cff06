"""The page of verdicts in Airflow's UI: the entry point ``airflow.plugins``.

Scheduler, workers and every task process load this module too; the page itself is loaded by the
api-server alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

from safemerge_airflow.page import PREFIX, page_path


class SafemergePlugin(AirflowPlugin):
    """Serves the page under ``/safemerge`` and shows it in Airflow's frame, from its navigation."""

    name = "safemerge"
    external_views: ClassVar[list[Any]] = [
        {
            "name": "Releases",
            "href": page_path("/"),
            "destination": "nav",
            "url_route": "safemerge",
            "nav_top_level": True,
            # Filled, as it stands on pale tiles and, where it is active, on a dark one.
            "icon": page_path("/icon.svg"),
            "icon_dark_mode": page_path("/icon-dark.svg"),
        }
    ]

    @cached_property
    def fastapi_apps(self) -> list[Any]:
        """What Airflow mounts. The api-server asks for it, and nobody else."""
        from safemerge_airflow.page.serving import page

        return [{"app": page, "url_prefix": PREFIX, "name": "safemerge"}]
