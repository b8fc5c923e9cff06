from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

from tests.unit.plugins.page.conftest import REPOSITORY

# As in the image of Airflow's own services, which holds no machine-learning library and no MLflow.
LOAD = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "torch", "mlflow", "plotly", "rich", "typer", "safetensors"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from safemerge_airflow.plugin import SafemergePlugin
light = [name for name in ("fastapi",) if name in sys.modules]
import safemerge_airflow.page.app as page
print(json.dumps([light, SafemergePlugin.external_views[0]["href"], len(page.app.routes)]))
"""


def test_the_page_needs_what_airflow_brings_and_the_plugin_next_to_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=os.environ
        | {
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'plugins'}",
            "AIRFLOW__API__BASE_URL": "https://tools.example/airflow",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    light, href, routes = json.loads(done.stdout.splitlines()[-1])
    assert light == []
    assert href == "/airflow/safemerge/"
    assert routes == 6


def test_airflow_finds_the_plugin() -> None:
    from airflow.plugins_manager import is_valid_plugin

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    entry = EntryPoint(
        "safemerge", project["entry-points"]["airflow.plugins"]["safemerge"], "airflow.plugins"
    )
    plugin = entry.load()
    assert is_valid_plugin(plugin)
    assert plugin().fastapi_apps[0]["url_prefix"] == "/safemerge"
