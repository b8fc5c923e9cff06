"""The demo's flow on the tiny model: two DAG runs, a passing and a blocked verdict, one screen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from safemerge.demo.run import run_twice
from safemerge.demo.services import DemoHome, mlflow_service
from safemerge.storage.adapters import read_adapter
from tests.conftest import TinyPipeline

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # MLflow is started detached, and stopped by its process id.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def test_the_demo_reaches_both_verdicts(tiny_pipeline: TinyPipeline, tmp_path: Path) -> None:
    home = DemoHome(tmp_path / "demo")
    folder = tiny_pipeline.config.parent
    lines = yaml.safe_load(tiny_pipeline.config.read_text(encoding="utf-8"))
    for training in (lines["task_training"], lines["safety_training"]):
        training["data"][0]["path"] = str(folder / training["data"][0]["path"])
    for suite in lines["evaluation"]["suites"]:
        suite["path"] = str(folder / suite["path"])
    lines["evaluation"]["utility"]["include_path"] = str(folder / "tasks")
    home.pipeline.write_text(yaml.safe_dump(lines), encoding="utf-8")

    console = Console(record=True, width=150, force_terminal=False)
    console.print(run_twice(home, console, mlflow_port=0))
    shown = console.export_text()

    for task in ("open_run", "train_task_adapter", "safemerge", "evaluate.scale_selected", "gate", "promote"):
        assert f"✓ {task} " in shown, task
    assert "done before with the same inputs" in shown
    assert shown.count("PASS: may ship") == 2  # the tiny policy lets everything pass
    assert "fine-tuned, unrepaired" in shown
    assert {path.name for path in home.adapters.iterdir()} == {"fine_tuned", "safety", "safemerge"}
    assert (
        read_adapter(home.adapters / "safemerge").pairs.keys()
        == read_adapter(home.adapters / "safety").pairs.keys()
    )
    assert {path.stem for path in home.reports.iterdir()} >= {"aligned", "fine_tuned", "safemerge"}
    assert mlflow_service(home).url is None
