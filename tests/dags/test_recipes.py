"""Recipes as Airflow parses them: one DAG for each, whatever is wrong with another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AssetOrTimeSchedule
from airflow.serialization.serialized_objects import DagSerialization

from safemerge.errors import ConfigError
from safemerge_airflow.messages import FailureMessage
from safemerge_airflow.recipe_bundle import RecipeBundle
from safemerge_airflow.recipe_dag import recipe_dag
from tests.dags.test_safemerge_pipeline import UPSTREAM
from tests.unit.config.test_recipes import write

REPOSITORY = Path(__file__).resolve().parents[2]


def parsed(recipes: Path, storage: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the DAG processor finds in a folder of recipes."""
    from airflow.dag_processing.dagbag import BundleDagBag

    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(storage))
    bundle = RecipeBundle(name="recipes", recipes=str(recipes))
    bundle.initialize()
    return BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name="recipes")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Three recipes that can be used, and one that cannot."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("day", "night"):
        write(folder, name, name=name)
    write(folder, "hand", name="hand", schedule={}, owners=["a", "b"])
    write(folder, "bad", name="bad", gate={"max_harmful_rat": 0.1, "max_over_refusal_rate": 0.2})
    return folder


def test_a_bad_recipe_breaks_its_own_dag_alone(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = parsed(recipes, tmp_path / "bundles", monkeypatch)
    assert sorted(bag.dags) == ["day", "hand", "night"]
    ((file, error),) = bag.import_errors.items()
    assert file == "bad.yaml.py"
    last = error.strip().splitlines()[-1]
    assert last.startswith(f"safemerge.errors.ConfigError: {recipes / 'bad.yaml'}: line ")
    assert last.endswith(", gate.max_harmful_rat: unknown key; did you mean max_harmful_rate?")
    assert "pydantic" not in error


def test_a_recipe_gives_its_dag_schedule_owners_tags_and_assets(recipes: Path) -> None:
    dag = recipe_dag(recipes / "night.yaml")
    assert dag.dag_id == "night"
    assert dag.description == "Every night"
    assert dag.tags == {"safemerge", "support"}
    assert isinstance(dag.timetable, AssetOrTimeSchedule)
    assert {task.owner for task in dag.tasks} == {"ml-platform"}
    assert {task.task_id: set(task.upstream_task_ids) for task in dag.tasks} == UPSTREAM
    assert (dag.max_active_runs, dag.catchup) == (1, False)
    assert [asset.name for asset in dag.get_task("open_run").inlets] == ["tickets"]
    (champion,) = dag.get_task("promote").outlets
    assert (champion.name, champion.uri) == ("night-lora@champion", "models:/night-lora@champion")
    assert dag.get_task("promote").max_active_tis_per_dag == 1
    assert "night-lora@champion" in dag.doc_md


def test_a_recipe_without_a_schedule_is_run_by_hand(recipes: Path) -> None:
    dag = recipe_dag(recipes / "hand.yaml")
    assert not dag.timetable.can_be_scheduled
    assert {task.owner for task in dag.tasks} == {"a, b"}
    assert dag.get_task("open_run").inlets == []


def test_the_form_asks_for_versions_and_not_for_the_file(recipes: Path) -> None:
    dag = recipe_dag(recipes / "night.yaml")
    assert "config" not in dag.params
    assert dag.params["force"] is False
    param = dag.params.get_param("version of tickets")
    assert param.resolve() is None
    assert param.description == "Replaces task_training.data.0.path of the recipe."
    assert "version of tickets" not in recipe_dag(recipes / "hand.yaml").params


def test_a_run_is_told_file_and_versions(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from safemerge_airflow import operators

    dag = recipe_dag(recipes / "night.yaml")
    run = SimpleNamespace(conf={"version of tickets": "v3"}, dag_id="night", run_id="r")
    context = {"dag_run": run, "params": {**dag.params.dump(), "version of tickets": "v3"}}
    task = dag.get_task("open_run").prepare_for_execution()
    task.render_template_fields(context)
    monkeypatch.setattr(operators.SafemergeStepOperator, "execute", lambda self, context: self.options())
    assert task.execute(context) == {
        "config": str(recipes / "night.yaml"),
        "run_key": "night/r",
        "promote": True,
        "force": False,
        "overrides": {"task_training.data.0.path": "tickets/v3.jsonl"},
    }


PEOPLE = {
    "approval": {"approvers": ["alice", "bob"], "timeout_hours": 8},
    "notifications": [
        {
            "on": ["block", "failure"],
            "notifier": "airflow.providers.smtp.notifications.smtp.SmtpNotifier",
            "args": {"to": "ops@example.org"},
        }
    ],
}


def test_a_recipe_says_who_signs_and_who_is_told(recipes: Path) -> None:
    dag = recipe_dag(write(recipes, "people", name="people", **PEOPLE))
    signature = dag.get_task("sign_off")
    assert [user["id"] for user in signature.assigned_users] == ["alice", "bob"]
    assert signature.response_timeout == timedelta(hours=8)
    assert (signature.options, signature.defaults) == (["Approve", "Reject"], ["Reject"])
    for task in ("gate", "promote"):
        assert [one.notifier.rpartition(".")[2] for one in dag.get_task(task).notifications] == [
            "SmtpNotifier"
        ]
    for task in dag.tasks:
        (callback,) = task.on_failure_callback
        assert isinstance(callback, FailureMessage), task.task_id
    texts = [json.dumps(DagSerialization.serialize_dag(recipe_dag(recipes / "people.yaml")), default=str)]
    texts += [json.dumps(DagSerialization.serialize_dag(dag), default=str)]
    assert texts[0] == texts[1]
    assert " at 0x" not in texts[0]


def test_nobody_is_told_and_anybody_signs_where_a_recipe_is_silent(recipes: Path) -> None:
    dag = recipe_dag(recipes / "night.yaml")
    assert dag.get_task("sign_off").assigned_users is None
    assert dag.get_task("gate").notifications == ()
    assert not any(task.on_failure_callback for task in dag.tasks)


def test_a_notifier_that_is_not_installed_breaks_the_recipe(recipes: Path) -> None:
    told = [{"on": ["block"], "notifier": "airflow.providers.pigeon.PigeonNotifier"}]
    path = write(recipes, "pigeon", name="pigeon", notifications=told)
    with pytest.raises(ConfigError, match=r"pigeon.yaml: notifications: .* no module of airflow.provid"):
        recipe_dag(path)


def test_no_recipe_takes_the_place_of_the_dag_for_any_config(recipes: Path) -> None:
    path = write(recipes, "safemerge_pipeline", name="safemerge_pipeline")
    with pytest.raises(ConfigError, match="name: expected another name than that of the DAG for any config"):
        recipe_dag(path)


def test_the_bundle_follows_the_folder(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / "bundles"))
    bundle = RecipeBundle(name="recipes", recipes=str(recipes))
    assert bundle.get_current_version() is None
    bundle.initialize()
    files = {file.name: file for file in bundle.path.glob("*.py")}
    assert sorted(files) == ["bad.yaml.py", "day.yaml.py", "hand.yaml.py", "night.yaml.py"]
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    (recipes / "bad.yaml").unlink()
    (recipes / "hand.yaml").rename(recipes / "hand.yml")
    write(recipes, "day", name="day", description="New\fline\0")
    bundle.refresh()
    assert not files["hand.yaml.py"].exists()
    assert (bundle.path / "hand.yml.py").exists()
    assert not files["bad.yaml.py"].exists()
    assert files["night.yaml.py"].stat().st_mtime_ns == before["night.yaml.py"]
    text = files["day.yaml.py"].read_text(encoding="utf-8")
    assert "# name: day" in text
    compile(text, "day.yaml.py", "exec")


def test_a_recipe_that_cannot_be_opened_breaks_its_own_dag_alone(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recipes / "bad.yaml").unlink()
    (recipes / "lost.yaml").symlink_to("nowhere")
    bag = parsed(recipes, tmp_path / "bundles", monkeypatch)
    assert sorted(bag.dags) == ["day", "hand", "night"]
    assert bag.import_errors.keys() == {"lost.yaml.py"}
    assert "lost.yaml: expected a YAML file, got no such file" in bag.import_errors["lost.yaml.py"]


@pytest.mark.parametrize("length", [240, 250])
def test_a_recipe_whose_name_fills_the_disks_limit_keeps_no_other_from_its_dag(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    name = "n" * length
    write(recipes, name, name=name)
    assert sorted(parsed(recipes, tmp_path / "bundles", monkeypatch).dags) == ["day", "hand", "night", name]
    (recipes / f"{name}.yaml").unlink()
    assert sorted(parsed(recipes, tmp_path / "bundles", monkeypatch).dags) == ["day", "hand", "night"]


def test_a_bundle_without_its_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path / "bundles"))
    with pytest.raises(ConfigError, match="recipes of bundle night: expected a folder, got none at /nowhere"):
        RecipeBundle(name="night", recipes="/nowhere").initialize()


FRESH = """
import gc, json, sys, time
import airflow.sdk
from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, BaseOperator, CronTriggerTimetable, Param
from airflow.dag_processing.dagbag import BundleDagBag

gc.freeze()  # as Airflow's DAG processor does, before it starts the processes that parse
began = time.process_time()
from safemerge_airflow.recipe_bundle import RecipeBundle
import safemerge_airflow.recipe_dag
import_s = time.process_time() - began

bundle = RecipeBundle(name="fifty", recipes=sys.argv[1])
bundle.initialize()
began = time.process_time()
bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name="fifty")
parse_s = time.process_time() - began
assert bag.import_errors == {}, bag.import_errors
for dag in bag.dags.values():
    dag.params.validate()  # parsing leaves it out
times = {"import_s": import_s, "parse_s": parse_s}
print(json.dumps({"dags": len(bag.dags), "times": times, "loaded": list(sys.modules)}))
"""


def parsed_afresh(folder: Path, storage: Path) -> dict[str, Any]:
    """What parsing the recipes of a folder gives and takes in a process that has Airflow loaded."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)],
        env=os.environ
        | {
            "PYTHONPATH": str(REPOSITORY / "plugins"),
            "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(storage),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fresh: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return fresh


def test_fifty_recipes_are_parsed_quickly_and_load_nothing_heavy(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    for number in range(50):
        write(folder, f"r{number:02}", name=f"r{number:02}")
    heavy = {"torch", "transformers", "mlflow", "peft", "trl", "lm_eval", "scipy", "plotly", "safetensors"}
    took = []
    # Seconds of one processor, 0.4 on a machine of two cores; others who use it can only make them more.
    while len(took) < 3 and min(took, default=1) >= 0.5:
        fresh = parsed_afresh(folder, tmp_path / "bundles")
        assert fresh["dags"] == 50
        assert heavy & set(fresh["loaded"]) == set()
        took.append(sum(fresh["times"].values()))
    assert min(took) < 0.5, took
