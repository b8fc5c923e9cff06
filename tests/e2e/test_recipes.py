"""A folder of recipes under Airflow's own scheduler: new data start a run, and a bad file stays alone.

The steps are a stand-in's: what they do is tested elsewhere, what they are asked is looked at here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from safemerge.demo.services import DemoHome, airflow_service, free_port, prepare_airflow
from safemerge.pipeline.announcing import ChampionAsset
from safemerge_airflow.page.access import Readable
from safemerge_airflow.page.unopened import unopened_runs
from tests.e2e.test_device_lane import Api
from tests.unit.config.test_recipes import write

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # Airflow is started detached, as in the demo, and stopped by its process id.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
TIMEOUT_S = 600
RELEASED = {"success", "skipped"}
"""States of the tasks of a run that released an adapter: no merge is chosen, and nobody is asked."""

STEPS = f"""#!{sys.executable}
import json, sys
name, request = sys.argv[4], json.loads(sys.argv[5])
with open(LOG, "a") as log:
    log.write(json.dumps([name, request]) + "\\n")
outputs = {{
    "train": ["adapter"],
    "merge": ["safemerge", "scale", "scale_selected"],
    "evaluate": ["report"],
    "gate": ["decision"],
    "promote": ["model_version"],
}}
figures = {{
    "open": {{"tuning": False, "learning": False}},
    "gate": {{"passed": True, "verdict": "pass", "summary": "PASS"}},
    "promote": {{"version": "3", "verdict": "pass"}},
}}.get(name, {{}})
if name == "open" and "v7" not in json.dumps(request):
    figures = {{"note": "nothing new"}}
result = {{
    "step": name,
    "run_id": name,
    "inputs_digest": "d",
    "outputs": {{one: {{"uri": "models:/m/3", "digest": "ab"}} for one in outputs.get(name, [])}},
    "figures": figures,
}}
with open(sys.argv[sys.argv.index("--result") + 1], "w") as file:
    json.dump(result, file)
"""


def test_new_data_start_a_run_whose_champion_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = DemoHome(tmp_path / "deployment")
    recipes, log = home.recipes, tmp_path / "steps.jsonl"
    far = datetime.now(UTC) + timedelta(hours=12)
    for name in ("day", "night", "hand"):
        data = {"asset": f"{name}-data", "sets": {"task_training.data.0.revision": "{version}"}}
        write(recipes, name, name=name, schedule={"cron": f"{far:%-M %-H} * * *", "data": [data]})
    write(recipes, "bad", name="bad", steps=3)
    steps = tmp_path / "python"
    steps.write_text(STEPS.replace("LOG", repr(str(log))), encoding="utf-8")
    steps.chmod(0o755)

    airflow = airflow_service(home)
    port = free_port(0)
    environment = home.environment("http://127.0.0.1:9", port) | {
        "AIRFLOW__SAFEMERGE__PYTHON": str(steps),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    try:
        prepare_airflow(home, environment)
        api = Api(airflow.start([sys.executable, "-m", "airflow", "standalone"], port, environment), home)

        dags = _waited(lambda: sorted(dag["dag_id"] for dag in api.ask("/api/v2/dags")["dags"]), 4)
        assert dags == ["day", "hand", "night", "safemerge_pipeline"]
        (error,) = _waited(lambda: api.ask("/api/v2/importErrors")["import_errors"], 1)
        assert error["filename"] == "bad.yaml.py"
        assert f"{recipes / 'bad.yaml'}: line" in error["stack_trace"]
        assert "steps: unknown key" in error["stack_trace"]

        assets = {asset["name"]: asset["id"] for asset in api.ask("/api/v2/assets?limit=100")["assets"]}
        announced = {"asset_id": assets["night-data"], "extra": {"version": "v7"}}
        api.ask("/api/v2/assets/events", announced)
        assert _ended(api, "night", 1) == RELEASED
        asked = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        assert asked[0][1]["options"]["overrides"] == {"task_training.data.0.revision": "v7"}
        (event,) = (
            event
            for event in api.ask("/api/v2/assets/events")["asset_events"]
            if event["name"] == "night-lora@champion"
        )
        carried = {"version": "3", "model": "models:/m/3", "adapter_digest": "ab", "verdict": "pass"}
        assert event["extra"] == carried | {"run_id": "open"}

        monkeypatch.setenv("AIRFLOW_TOKEN", api.token)
        ChampionAsset(api.url, "night-lora").announce({"version": "2", "rollback": {"by": "bob"}})
        newest = api.ask("/api/v2/assets/events?order_by=-timestamp")["asset_events"][0]
        assert (newest["name"], newest["extra"]["version"]) == ("night-lora@champion", "2")

        # The version announced last is what a run by hand takes, too; one given by hand wins.
        assert _started(api, "night", {}) == RELEASED
        assert _started(api, "night", {"version of night-data": "v6"}) == {"skipped"}
        engine = create_engine(f"sqlite:///{home.airflow_database}")
        with Session(engine) as session:
            (nothing_new,) = unopened_runs(Readable(frozenset({"night"}), all_dags=False), session)
        engine.dispose()
        assert (nothing_new.dag_id, nothing_new.failed) == ("night", False)
    finally:
        airflow.stop()


def _started(api: Api, dag: str, conf: dict[str, Any]) -> set[str]:
    """States of the tasks of a run that was started by hand, once it has ended."""
    before = len(api.ask(f"/api/v2/dags/{dag}/dagRuns")["dag_runs"])
    api.ask(f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})
    return _ended(api, dag, before + 1)


def _ended(api: Api, dag: str, runs: int) -> set[str]:
    """States of the tasks of a DAG's newest run, once there are so many and all have ended."""
    path = f"/api/v2/dags/{dag}/dagRuns"

    def ended() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.ask(f"{path}?order_by=-run_after")["dag_runs"]
        return [run for run in found if run["state"] in ("success", "failed")]

    run = _waited(ended, runs)[0]["dag_run_id"]
    return {task["state"] for task in api.ask(f"{path}/{run}/taskInstances")["task_instances"]}


def _waited(ask: Callable[[], list[Any]], count: int) -> list[Any]:
    """The answer, once it has so many parts."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while len(answer := ask()) < count:
        assert time.monotonic() < give_up_s, answer
        time.sleep(1)
    return answer
