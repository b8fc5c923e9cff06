from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest

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


@pytest.mark.parametrize(
    ("icon", "tiles"),
    # As Airflow 3.3 paints them: idle, pointed at, active.
    [("icon.svg", ("#dce7f5", "#c1d5ec", "#3c5b89")), ("icon-dark.svg", ("#1d3358", "#294874", "#3c5b89"))],
)
def test_the_icon_stands_out_from_every_tile(icon: str, tiles: tuple[str, ...]) -> None:
    svg = (REPOSITORY / "plugins/safemerge_airflow/page/static" / icon).read_text()
    colours = re.findall("#[0-9a-f]{6}", svg)
    for tile in tiles:
        # WCAG 2.2, 1.4.11: graphics have a contrast of 3 to 1 at least.
        assert max(contrast(colour, tile) for colour in colours) >= 3, tile


def contrast(one: str, other: str) -> float:
    """By WCAG 2.2: 1 for two colours that are as bright, 21 for black and white."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    shares = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_airflow_finds_the_plugin() -> None:
    from airflow.plugins_manager import is_valid_plugin

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    entry = EntryPoint(
        "safemerge", project["entry-points"]["airflow.plugins"]["safemerge"], "airflow.plugins"
    )
    plugin = entry.load()
    assert is_valid_plugin(plugin)
    assert plugin().fastapi_apps[0]["url_prefix"] == "/safemerge"
