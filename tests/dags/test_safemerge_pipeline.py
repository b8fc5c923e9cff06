from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import TriggerRule

from safemerge.config.tuning import MAX_RUNGS
from safemerge.core import methods
from safemerge_airflow.operators import DeviceStepOperator, SafemergeStepOperator
from safemerge_airflow.pipeline_dag import ROUNDS

Parse = Callable[[], Any]
REPOSITORY = Path(__file__).resolve().parents[2]
UPSTREAM = {
    "open_run": set(),
    "train_safety_adapter": {"open_run"},
    "train_task_adapter": {"open_run"},
    "tune.branch": {"open_run"},
    "tune.learn": {"open_run", "train_safety_adapter", "train_task_adapter", "tune.branch"},
    "tune.propose": {
        *("open_run", "train_safety_adapter", "train_task_adapter"),
        "tune.branch",
        "tune.learn",
    },
    "tune.utility": {"tune.propose"},
    "tune.before_first": {"tune.propose", "tune.utility"},
    "tune.first": {"tune.propose", "tune.before_first"},
    "tune.before_second": {"tune.propose", "tune.utility", "tune.first"},
    "tune.second": {"tune.propose", "tune.before_second"},
    "tune.before_last": {"tune.propose", "tune.utility", "tune.first", "tune.second"},
    "tune.last": {"tune.propose", "tune.before_last"},
    "tune.choose": {"tune.propose", "tune.utility", "tune.first", "tune.second", "tune.last"},
    "safemerge": {"open_run", "train_safety_adapter", "train_task_adapter", "tune.choose"},
    "evaluate.aligned": {"open_run"},
    "evaluate.fine_tuned": {"open_run", "train_task_adapter"},
    "evaluate.safemerge": {"open_run", "safemerge"},
    "evaluate.scale": {"open_run", "safemerge"},
    "evaluate.scale_selected": {"open_run", "safemerge"},
    "gate": {
        *("open_run", "safemerge", "evaluate.aligned", "evaluate.fine_tuned"),
        *("evaluate.safemerge", "evaluate.scale", "evaluate.scale_selected"),
    },
    "sign_off": {"open_run", "safemerge", "gate"},
    "promote": {"open_run", "safemerge", "gate", "sign_off"},
}
UPSTREAM["close_run"] = set(UPSTREAM) - {"tune.branch"}
ON_A_DEVICE = {
    *("train_safety_adapter", "train_task_adapter", "safemerge"),
    *(task for task in UPSTREAM if task.startswith("evaluate.")),
    *("tune.learn", "tune.propose", "tune.utility", "tune.first", "tune.second", "tune.last"),
}


FRESH = f"""
import json, sys, time
import airflow.sdk
from airflow.sdk import BaseOperator, DAG, Param, TaskGroup, conf
from airflow.dag_processing.dagbag import BundleDagBag

folder = {str(REPOSITORY / "dags")!r}
began = time.process_time()
bag = BundleDagBag(dag_folder=folder, bundle_path=folder, bundle_name="dags-folder")
parse_s = time.process_time() - began
loaded = list(sys.modules)
assert bag.import_errors == {{}}, bag.import_errors
dag = bag.dags["safemerge_pipeline"]

from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
print(json.dumps({{
    "parse_s": parse_s,
    "loaded": loaded,
    "lanes": {{task.task_id: [task.executor, task.queue, task.pool] for task in dag.tasks}},
    "max_active_tasks": dag.max_active_tasks,
    "config": dag.params["config"],
    "loaded_by_plugins": sorted(set(sys.modules) - set(loaded)),
    "plugin_errors": plugins_manager.get_import_errors(),
}}))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What a fresh interpreter sees, in a deployment with a ``gpu`` lane and a default config."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        env=os.environ
        | {
            "PYTHONPATH": str(REPOSITORY / "plugins"),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor,gpu:CeleryExecutor",
            "SAFEMERGE_CONFIG": "/etc/safemerge/pipeline.yaml",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_edges_are_those_of_the_table(dag: Any) -> None:
    assert {task.task_id: set(task.upstream_task_ids) for task in dag.tasks} == UPSTREAM


def test_every_round_that_a_config_may_ask_for_has_a_task() -> None:
    assert len(ROUNDS) == MAX_RUNGS + 2


def test_only_a_skipped_task_lets_the_next_one_run(dag: Any) -> None:
    rules = {task.task_id: task.trigger_rule for task in dag.tasks}
    assert rules.pop("close_run") == TriggerRule.ALL_DONE_SETUP_SUCCESS
    tuned = ("tune.branch", "tune.learn", "tune.utility", "tune.first", "tune.second", "tune.last")
    for always in ("open_run", "train_safety_adapter", "train_task_adapter", *tuned):
        assert rules.pop(always) == TriggerRule.ALL_SUCCESS
    assert set(rules.values()) == {TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS}
    # So that a run with nothing to do, whose first task is skipped, skips all the others; and so that rounds
    # which nobody is asked in do not end the choice.
    assert all("open_run" in UPSTREAM[task] for task in rules if not task.startswith("tune."))


def test_pruning_does_not_decide_the_run(dag: Any) -> None:
    assert [task.task_id for task in dag.teardowns] == ["close_run"]
    assert not dag.get_task("close_run").on_failure_fail_dagrun


def test_one_run_at_a_time_and_only_when_asked(dag: Any) -> None:
    assert (dag.max_active_runs, dag.catchup, dag.timetable.can_be_scheduled) == (1, False, False)


def test_trigger_form_is_typed(dag: Any) -> None:
    params = {name: dag.params.get_param(name) for name in dag.params}
    assert list(params) == [
        *("config", "method", "threshold", "quantile", "task_weight", "safety_weight"),
        *("adapter", "fine_tuned_adapter", "promote", "force", "run_key"),
    ]
    for name, param in params.items():
        assert param.schema["title"], name
        assert param.description, name
    assert params.pop("config").schema["type"] == "string"
    assert params.pop("promote").resolve() is True
    assert params.pop("force").resolve() is True
    for name, param in params.items():
        assert param.schema["type"][0] == "null", name
        assert param.resolve() is None, name
    assert params["method"].schema["enum"] == [None, *methods.names()]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("config", None), ("config", ""), ("quantile", 1.5), ("method", "cat"), ("adapter", 7)],
)
def test_trigger_form_refuses(dag: Any, name: str, wrong: object) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        dag.params.get_param(name).__copy__().resolve(wrong)


def test_parameters_reach_the_step_with_their_types(dag: Any) -> None:
    params = {"config": "/a.yaml", "quantile": 0.5, "method": None, "adapter": "models:/m@champion"}
    rest = dict.fromkeys(("threshold", "task_weight", "safety_weight", "fine_tuned_adapter", "run_key"))
    context = {
        "dag_run": SimpleNamespace(conf={}),
        "params": params | rest | {"promote": False, "force": True},
    }
    task = dag.get_task("open_run").prepare_for_execution()
    task.render_template_fields(context)
    assert task.options() == {
        "config": "/a.yaml",
        "adapter": "models:/m@champion",
        "promote": False,
        "force": True,
        "overrides": {"merge.quantile": 0.5},
    }


def _kind(task: Any) -> type:
    """The operator; of a task that is mapped, the one that each of its parts will be."""
    return getattr(task, "operator_class", type(task))


def test_template_fields_are_attributes(dag: Any) -> None:
    for task in dag.tasks:
        kind = _kind(task)
        if issubclass(kind, SafemergeStepOperator):
            assert {*kind.step_inputs, *kind.step_options} <= set(task.template_fields), task.task_id
        arguments = inspect.signature(kind.__init__).parameters if kind is not type(task) else vars(task)
        for field in set(task.template_fields) - {"run_id"}:
            assert field in arguments, f"{task.task_id}.{field}"


def test_a_branch_skips_nothing_but_what_it_chooses_from(dag: Any) -> None:
    assert dag.get_task("tune.branch").downstream_task_ids == {"tune.learn", "tune.propose"}


def test_heavy_tasks_are_those_on_a_device(dag: Any) -> None:
    assert {task.task_id for task in dag.tasks if issubclass(_kind(task), DeviceStepOperator)} == ON_A_DEVICE


def test_the_page_of_operations_counts_the_tasks_of_a_run_that_chooses_no_merge() -> None:
    skipped = {task for task in UPSTREAM if task.startswith("tune.")} - {"tune.branch"}
    words = {8: "eight", 9: "nine", 10: "ten", 11: "eleven"}
    text = " ".join((REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8").split())
    ran = len(UPSTREAM) - len(skipped)
    assert f"{ran} tasks that start a process, and {words[len(skipped)]} that the scheduler skips" in text
    assert f"which {words[len(ON_A_DEVICE - skipped)]} of the tasks take" in text
    assert f"{len(UPSTREAM)},000 rows of task instances a night" in text


def test_all_runs_on_this_machine_where_there_is_no_lane(dag: Any) -> None:
    lanes = {(task.executor, task.queue, task.pool) for task in dag.tasks}
    assert lanes == {(None, "default", "default_pool")}
    assert dag.max_active_tasks == 1


def test_heavy_tasks_ask_for_the_lane_of_the_deployment(fresh: dict[str, Any]) -> None:
    rest = set(UPSTREAM) - ON_A_DEVICE
    assert fresh["lanes"] == {
        **{task: ["gpu", "gpu", "gpu_pool"] for task in ON_A_DEVICE},
        **{task: [None, "default", "default_pool"] for task in rest},
    }
    assert fresh["max_active_tasks"] > 1


def test_parsing_is_quick_and_loads_nothing_heavy(fresh: dict[str, Any]) -> None:
    heavy = {"torch", "transformers", "mlflow", "peft", "trl", "lm_eval", "scipy", "plotly", "safetensors"}
    assert heavy & set(fresh["loaded"]) == set()
    assert fresh["parse_s"] < 0.5


def test_config_parameter_defaults_to_the_environment(fresh: dict[str, Any]) -> None:
    assert fresh["config"] == "/etc/safemerge/pipeline.yaml"


def test_plugin_scanner_leaves_the_package_alone(fresh: dict[str, Any]) -> None:
    stems = {path.stem for path in (REPOSITORY / "plugins").rglob("*.py")}
    assert len(stems) >= 4
    assert stems & set(fresh["loaded_by_plugins"]) == set()
    assert fresh["plugin_errors"] == {}


def test_serialized_form_is_the_same_at_every_parsing(parse: Parse) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    first, second = (json.dumps(DagSerialization.serialize_dag(parse()), default=str) for _ in range(2))
    assert first == second
    assert " at 0x" not in first
