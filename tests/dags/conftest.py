"""The DAG as Airflow parses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def parse() -> Callable[[], Any]:
    """Airflow's own parser, applied to the pipeline's file."""
    from airflow.dag_processing.dagbag import BundleDagBag

    folder = Path(__file__).resolve().parents[2] / "dags"

    def parse_folder() -> Any:
        bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
        assert bag.import_errors == {}
        assert list(bag.dags) == ["safemerge_pipeline"]
        return bag.dags["safemerge_pipeline"]

    return parse_folder


@pytest.fixture(scope="session")
def dag(parse: Callable[[], Any]) -> Any:
    """The pipeline's DAG."""
    return parse()
