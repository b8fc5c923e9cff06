"""A person under Airflow's own scheduler: asked, heard by REST, waited for in vain.

The steps are a stand-in's: what they do is tested elsewhere, what they are asked is looked at here.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safemerge.demo.services import DemoHome, airflow_service, free_port
from tests.e2e.test_device_lane import Api

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # Airflow is started detached, as in the demo, and stopped by its process id.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
TIMEOUT_S = 300
SETTLED_S = 10
LOCAL = "airflow.dag_processing.bundles.local.LocalDagBundle"
RUNS = ("pass", "block", "approve", "reject", "late")

DAGS = """
from types import SimpleNamespace

from airflow.sdk import DAG, task

from safemerge.config.people import ApprovalConfig
from safemerge_airflow.pipeline_dag import Made, gate_and_promote

ADAPTER = {"uri": "runs:/a/adapter", "digest": "ab"}


def dag_of(name, approval):
    with DAG(dag_id=name, schedule=None, default_args={"retries": 2, "retry_delay": 1}) as dag:

        @task(multiple_outputs=True)
        def measured():
            return {"report": ADAPTER}

        reports = dict.fromkeys(("safemerge", "aligned", "fine_tuned"), measured()["report"])
        made = Made(name, ADAPTER, ADAPTER, ADAPTER, {})
        tracking = SimpleNamespace(registered_model=f"{name}-lora")
        approval = ApprovalConfig(**approval)
        recipe = SimpleNamespace(notifications=(), approval=approval, tracking=tracking)
        gate_and_promote(made, reports, recipe)
    return dag


for name, approval in APPROVALS.items():
    globals()[name] = dag_of(name, approval)
"""

STEPS = f"""#!{sys.executable}
import json, os, sys
name, request = sys.argv[4], json.loads(sys.argv[5])
run, answer = request["run_id"], request["options"].get("answer")
outputs, figures = {{}}, {{}}
if name == "gate":
    outputs = {{"decision": {{"uri": "runs:/g/decision.json", "digest": f"decision of {{run}}"}}}}
    verdict = run if run in ("pass", "block") else "cannot_tell"
    figures = {{"passed": run == "pass", "verdict": verdict, "summary": verdict}}
    figures["ask"] = verdict == "cannot_tell"
elif name == "ask":
    figures = {{"subject": f"Release {{run}}?", "body": "# CANNOT TELL {{{{ 7 * 7 }}}}"}}
    if os.path.exists(LOG + ".changed"):
        figures["subject"] = "Release another?"
elif name == "promote":
    with open(LOG, "a") as log:
        log.write(json.dumps([run, answer]) + "\\n")
    if run == "pass" or (answer and answer["approved"]):
        outputs = {{"model_version": {{"uri": "models:/m/3", "digest": "ab"}}}}
        figures = {{"version": "3", "verdict": "pass", "approved_by": answer and answer["by"]}}
    else:
        figures = {{"refused": f"rejected by {{answer and answer['by']}}"}}
result = {{"step": name, "run_id": run, "inputs_digest": "d", "outputs": outputs, "figures": figures}}
with open(sys.argv[sys.argv.index("--result") + 1], "w") as file:
    json.dump(result, file)
"""


def test_people_are_asked_heard_and_waited_for(tmp_path: Path, airflow_database: Path) -> None:
    log, steps, dags = tmp_path / "promotions.jsonl", tmp_path / "python", tmp_path / "dags"
    steps.write_text(STEPS.replace("LOG", repr(str(log))), encoding="utf-8")
    steps.chmod(0o755)
    dags.mkdir()
    approvals: dict[str, Any] = {name: {} for name in RUNS}
    approvals["late"] = {"approvers": ["somebody else"], "timeout_hours": 45 / 3600}
    text = DAGS.replace("APPROVALS", repr(approvals))
    (dags / "people.py").write_text(text, encoding="utf-8")

    home = DemoHome(tmp_path / "deployment")
    airflow = airflow_service(home)
    port = free_port(0)
    bundle = {"name": "dags-folder", "classpath": LOCAL, "kwargs": {"path": str(dags)}}
    environment = home.environment("http://127.0.0.1:9", port) | {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__SAFEMERGE__PYTHON": str(steps),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }
    try:
        home.airflow_database.parent.mkdir(parents=True)
        shutil.copyfile(airflow_database, home.airflow_database)
        api = Api(airflow.start([sys.executable, "-m", "airflow", "standalone"], port, environment), home)
        _answer_and_wait(api, log)
    finally:
        airflow.stop()


def _answer_and_wait(api: Api, log: Path) -> None:
    """Start all runs, answer those that are to be, and look at what became of them."""
    known = _waited(lambda: sorted(dag["dag_id"] for dag in api.ask("/api/v2/dags")["dags"]), 5)
    assert known == sorted(RUNS)
    runs = {name: _started(api, name) for name in ("late", *RUNS[:-1])}
    _waited(lambda: _questions(api, "late"), 1)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        _answer(api, runs["late"], "Approve", "let me")

    answers = {"approve": ("Approve", "checked by hand"), "reject": ("Reject", "too close")}
    for name in answers:
        (asked,) = _waited(lambda name=name: _questions(api, name), 1)
        assert asked["subject"] == f"Release {name}?"
        assert asked["body"].startswith("# CANNOT TELL {{ 7 * 7 }}\n[MLflow run](http")
        _waited(lambda name=name: _waiting(api, runs[name]), 1)
    # People are not so quick: Airflow may take an answer for the end of the task that had just asked.
    time.sleep(SETTLED_S)
    for name, said in answers.items():
        _answer(api, runs[name], *said)

    ended = {name: _ended(api, run) for name, run in runs.items()}
    assert {name: state for name, (state, _) in ended.items()} == {
        **dict.fromkeys(("pass", "approve"), "success"),
        **dict.fromkeys(("block", "reject", "late"), "failed"),
    }
    tasks = {
        name: [states[task] for task in ("gate", "sign_off", "promote")]
        for name, (_, states) in ended.items()
    }
    assert tasks["pass"] == ["success", "skipped", "success"]
    assert tasks["block"] == ["failed", "upstream_failed", "upstream_failed"]
    assert tasks["approve"] == ["success", "success", "success"]
    for name in ("reject", "late"):
        assert tasks[name] == ["success", "success", "failed"]

    promotions = dict(map(json.loads, log.read_text(encoding="utf-8").splitlines()))
    assert promotions.pop("pass") is None
    for name, answer in promotions.items():
        assert answer.pop("at").startswith("20")
        assert answer.pop("decision_digest") == f"decision of {name}"
        assert answer.pop("adapter_digest") == "ab"
    assert promotions["approve"] == {"approved": True, "by": "admin", "reason": "checked by hand"}
    assert promotions["reject"] == {"approved": False, "by": "admin", "reason": "too close"}
    assert promotions["late"] == {"approved": False, "by": None, "reason": ""}

    # Of a task that is cleared Airflow keeps the question: nobody answers that for another one.
    log.with_suffix(".jsonl.changed").touch()
    dag, run = "reject", runs["reject"].rpartition("/")[2]
    cleared = {"dag_run_id": run, "task_ids": ["sign_off"], "include_downstream": True}
    cleared |= {"dry_run": False, "only_failed": False, "reset_dag_runs": True}
    api.ask(f"/api/v2/dags/{dag}/clearTaskInstances", cleared)
    state, states = _ended(api, runs[dag])
    assert (state, states["sign_off"], states["promote"]) == ("failed", "failed", "upstream_failed")
    assert [asked["subject"] for asked in _questions(api, dag)] == ["Release reject?"]
    assert len(log.read_text(encoding="utf-8").splitlines()) == len(promotions) + 1


def _answer(api: Api, run: str, chosen: str, reason: str) -> None:
    path = f"{run}/taskInstances/sign_off/-1/hitlDetails"
    api.ask(path, {"chosen_options": [chosen], "params_input": {"reason": reason}}, "PATCH")


def _started(api: Api, dag: str) -> str:
    """Address of a new run."""
    run = api.ask(f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None})
    return f"/api/v2/dags/{dag}/dagRuns/{run['dag_run_id']}"


def _questions(api: Api, dag: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.ask(f"/api/v2/dags/{dag}/dagRuns/~/hitlDetails")["hitl_details"]
    return found


def _waiting(api: Api, run: str) -> list[str]:
    """The state in which a task holds no slot, once it is reached."""
    return [state for state in [_states(api, run)["sign_off"]] if state == "awaiting_input"]


def _states(api: Api, run: str) -> dict[str, str]:
    tasks = api.ask(f"{run}/taskInstances")["task_instances"]
    return {task["task_id"]: task["state"] for task in tasks}


def _ended(api: Api, run: str) -> tuple[str, dict[str, str]]:
    """State of a run that has ended, and of its tasks."""

    def ended() -> list[str]:
        state = str(api.ask(run)["state"])
        return [state] if state in ("success", "failed") else []

    return _waited(ended, 1)[0], _states(api, run)


def _waited(ask: Callable[[], list[Any]], count: int) -> list[Any]:
    """The answer, once it has so many parts."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while len(answer := ask()) < count:
        assert time.monotonic() < give_up_s, answer
        time.sleep(1)
    return answer
