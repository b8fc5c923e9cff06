"""The demo's folder is the one that is named, before or after the command, and none is made to be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.demo.services import DemoHome
from tests.unit.cli.calls import invoke


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a demo, and variables that are put back."""
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("before", [True, False])
def test_the_folder_may_be_named_before_or_after_the_command(tmp_path: Path, before: bool) -> None:
    home = ("--home", tmp_path / "demo")
    called = (*home, "down") if before else ("down", *home)
    result = invoke("demo", *called)
    assert result.exit_code == 4
    assert result.stderr == f"error: {tmp_path / 'demo'}: expected the demo's folder, got no such folder\n"
    DemoHome(tmp_path / "demo")
    result = invoke("demo", *called)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["airflow: was not running", "mlflow: was not running"]
    assert list(Path().iterdir()) == []


def test_a_folder_without_a_demo_is_served_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The servers themselves start in the tests under e2e.
    monkeypatch.setattr("safemerge.demo.services.start_mlflow", lambda home, port: f"http://mlflow:{port}")
    monkeypatch.setattr("safemerge.demo.services.start_airflow", lambda home, url, port: f"{url}/{port}")
    home = tmp_path / "demo"
    result = invoke("demo", "--home", home, "up", "--airflow-port", 8)
    assert result.exit_code == 0
    said = result.stdout.splitlines()
    assert said[0].startswith(f"{home} holds no demo yet, which safemerge demo makes")
    assert "MLflow:  http://mlflow:5000" in said
    assert "Airflow: http://mlflow:5000/8" in said
    assert said[-1] == f"Stop both: safemerge demo down --home {home}"
    DemoHome(home).pipeline.touch()
    assert "no demo" not in invoke("demo", "up", "--home", home).stdout
    assert invoke("demo", "up").stdout.splitlines()[-1] == "Stop both: make down"
