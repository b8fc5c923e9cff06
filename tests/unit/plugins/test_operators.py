from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from safemerge_airflow import operators
from safemerge_airflow.mlflow_link import MlflowRunLink
from safemerge_airflow.operators import (
    CloseRunOperator,
    EvaluateOperator,
    GateOperator,
    OpenRunOperator,
    SafeMergeOperator,
    SafemergeStepOperator,
    TrainAdapterOperator,
)

ADAPTER = {"uri": "runs:/1/adapter", "digest": "ab"}
REPORT = {"uri": "runs:/2/report.json", "digest": "cd"}


class TaskInstance:
    """Keeps the XComs that a task pushes while it runs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


@pytest.fixture(autouse=True)
def local_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def context() -> dict[str, Any]:
    return {"ti": TaskInstance(), "dag_run": SimpleNamespace(dag_id="pipeline", run_id="manual__1")}


@pytest.fixture
def request_of(command: tuple[str, str], context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What an operator asks of its step."""

    def ask(operator: SafemergeStepOperator) -> dict[str, Any]:
        monkeypatch.setattr(operator, "command", lambda: command)
        monkeypatch.setattr(type(operator), "step", "request")
        monkeypatch.setattr(operators.SafemergeStepOperator, "xcoms", lambda _, result: dict(result.figures))
        answer = operator.execute(context)
        return json.loads(answer["request"])

    return ask


@pytest.fixture
def answer_with(command: tuple[str, str], context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let an operator's step end with a given result."""

    def run(operator: SafemergeStepOperator, **result: Any) -> dict[str, Any]:
        monkeypatch.setattr(operator, "command", lambda: command)
        monkeypatch.setattr(type(operator), "step", "echo")
        monkeypatch.setattr(operator, "options", lambda: {"lines": [], "result": result})
        return operator.execute(context)

    return run


def test_open_names_the_run_after_its_dag_run(request_of: Any) -> None:
    operator = OpenRunOperator(
        task_id="t", config="/a.yaml", overrides={"merge.quantile": 0.5, "merge.method": None}
    )
    assert request_of(operator) == {
        "run_id": None,
        "inputs": {},
        "options": {
            "config": "/a.yaml",
            "run_key": "pipeline/manual__1",
            "promote": True,
            "force": True,
            "overrides": {"merge.quantile": 0.5},
        },
    }


def test_open_keeps_a_key_that_was_given(request_of: Any) -> None:
    operator = OpenRunOperator(task_id="t", config="/a.yaml", run_key="nightly", adapter="models:/m@champion")
    options = request_of(operator)["options"]
    assert options["run_key"] == "nightly"
    assert options["adapter"] == "models:/m@champion"
    assert options["overrides"] == {}


@pytest.mark.parametrize(
    ("operator", "inputs", "options"),
    [
        (lambda **kw: TrainAdapterOperator(role="safety", **kw), {}, {"role": "safety"}),
        (
            lambda **kw: SafeMergeOperator(task_adapter=ADAPTER, safety_adapter=ADAPTER, **kw),
            {"task_adapter": ADAPTER, "safety_adapter": ADAPTER},
            {},
        ),
        (
            lambda **kw: SafeMergeOperator(task_adapter=ADAPTER, safety_adapter=None, **kw),
            {"task_adapter": ADAPTER},
            {},
        ),
        (
            lambda **kw: EvaluateOperator(arm="scale", adapter=ADAPTER, **kw),
            {"adapter": ADAPTER},
            {"arm": "scale"},
        ),
        (lambda **kw: EvaluateOperator(arm="aligned", **kw), {}, {"arm": "aligned"}),
        (CloseRunOperator, {}, {}),
    ],
)
def test_request_holds_what_is_there(request_of: Any, operator: Any, inputs: Any, options: Any) -> None:
    asked = request_of(operator(task_id="t", run_id="parent"))
    assert asked == {"run_id": "parent", "inputs": inputs, "options": options}


def test_outputs_are_handed_on_as_uris_and_digests(answer_with: Any, context: dict[str, Any]) -> None:
    operator = TrainAdapterOperator(task_id="t", run_id="parent", role="task")
    assert operator.multiple_outputs
    assert answer_with(operator, outputs={"adapter": ADAPTER}) == {"run_id": "run-1", "adapter": ADAPTER}
    assert context["ti"].xcoms == {"_link_MlflowRunLink": link("parent")}
    assert MlflowRunLink().get_link(operator, ti_key=None) == link("run-1")


def link(run_id: str) -> str:
    return f"http://127.0.0.1:5000/#/runs/{run_id}"


def test_link_of_a_failed_step_leads_to_the_pipeline_run(
    command: tuple[str, str], context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = TrainAdapterOperator(task_id="t", run_id="parent", role="task")
    assert MlflowRunLink().get_link(operator, ti_key=None) == ""
    monkeypatch.setattr(operator, "command", lambda: command)
    monkeypatch.setattr(TrainAdapterOperator, "step", "crash")
    with pytest.raises(AirflowException, match="out of memory"):
        operator.execute(context)
    assert MlflowRunLink().get_link(operator, ti_key=None) == link("parent")


def test_step_with_nothing_to_do_is_skipped_and_says_why(answer_with: Any) -> None:
    operator = TrainAdapterOperator(task_id="t", run_id="parent", role="safety")
    with pytest.raises(AirflowSkipException, match="an adapter was given"):
        answer_with(operator, figures={"note": "an adapter was given: nothing is trained"})
    # By this the page tells it from a task that was skipped before it had run.
    assert MlflowRunLink().get_link(operator, ti_key=None) == link("run-1")


def test_reused_step_succeeds_and_says_so(answer_with: Any, capfd: pytest.CaptureFixture[str]) -> None:
    operator = TrainAdapterOperator(task_id="t", run_id="parent", role="task")
    answer = answer_with(operator, outputs={"adapter": ADAPTER}, reused=True, figures={"loss": 1.5})
    assert answer["adapter"] == ADAPTER
    log = capfd.readouterr().out
    assert "already done in MLflow run run-1, nothing repeated" in log
    assert "loss: 1.5" in log


def gate() -> GateOperator:
    return GateOperator(
        task_id="t", run_id="parent", candidate=REPORT, aligned=REPORT, fine_tuned=None, adapter=ADAPTER
    )


def test_gate_leaves_out_a_report_that_is_missing(request_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GateOperator, "execute", SafemergeStepOperator.execute)
    assert request_of(gate())["inputs"] == {"candidate": REPORT, "aligned": REPORT, "adapter": ADAPTER}


def test_gate_hands_on_a_pass(answer_with: Any) -> None:
    answer = answer_with(gate(), outputs={"decision": REPORT}, figures={"passed": True, "summary": "pass"})
    assert answer["decision"] == REPORT


def test_gate_fails_with_the_verdict_after_recording_it(answer_with: Any, context: dict[str, Any]) -> None:
    figures = {"passed": False, "summary": "blocked: harmful rate 0.31 above 0.15"}
    with pytest.raises(AirflowFailException, match=r"^blocked: harmful rate 0\.31 above 0\.15$"):
        answer_with(gate(), outputs={"decision": REPORT}, figures=figures)
    assert context["ti"].xcoms["decision"] == REPORT
    assert context["ti"].xcoms["run_id"] == "run-1"


def test_gate_without_a_verdict_blocks(answer_with: Any) -> None:
    with pytest.raises(AirflowFailException, match="no verdict"):
        answer_with(gate(), outputs={"decision": REPORT})


def test_nothing_is_closed_where_no_run_was_opened(context: dict[str, Any]) -> None:
    with pytest.raises(AirflowSkipException, match="no pipeline run was opened"):
        CloseRunOperator(task_id="t", run_id=None).execute(context)


def test_killing_a_task_without_a_process_is_harmless() -> None:
    CloseRunOperator(task_id="t", run_id="parent").on_kill()


def test_arguments_of_a_task_beat_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_QUEUE", "gpu")
    assert EvaluateOperator(task_id="t", run_id="r", arm="aligned").pool == "gpu_pool"
    own = EvaluateOperator(task_id="t", run_id="r", arm="aligned", pool="mine", queue="here")
    assert (own.pool, own.queue) == ("mine", "here")


def test_steps_run_by_the_configured_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__PYTHON", "/envs/ml/bin/python")
    command = CloseRunOperator(task_id="t", run_id="r").command()
    assert command == ("/envs/ml/bin/python", "-m", "safemerge")
