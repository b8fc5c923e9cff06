"""The task that waits for a person: what is shown, who may answer, and what is handed on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import HITLDetailRequestResult

from safemerge.config.people import ApprovalConfig
from safemerge_airflow.operators import PromoteOperator
from safemerge_airflow.sign_off import SignOffOperator

ADAPTER = {"uri": "runs:/1/adapter", "digest": "ab"}
DECISION = {"uri": "runs:/2/decision.json", "digest": "cd"}
AT = datetime(2026, 11, 1, 2, tzinfo=UTC)
HOSTILE = "# CANNOT TELL {{ dag.dag_id }} {% raw %}"


class TaskInstance:
    """Keeps what a task pushes, through a wait, too."""

    id = UUID(int=1)

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value

    def xcom_pull(self, *, task_ids: str, key: str) -> Any:
        assert task_ids == "sign_off"
        return self.xcoms[key]


@pytest.fixture
def context() -> dict[str, Any]:
    ti = TaskInstance()
    return {"ti": ti, "task_instance": ti, "dag_run": SimpleNamespace(dag_id="d", run_id="r")}


@pytest.fixture
def request_made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Airflow is told to show."""
    shown: dict[str, Any] = {}

    def send(msg: Any) -> HITLDetailRequestResult:
        for name, value in msg.model_dump(exclude={"type"}).items():
            shown.setdefault(name, value)  # as Airflow: a task instance has one question, and keeps it
        return HITLDetailRequestResult.model_validate(shown)

    comms = SimpleNamespace(send=send)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shown


def operator(wanted: bool | None = True, **approval: Any) -> SignOffOperator:
    return SignOffOperator(
        task_id="sign_off",
        run_id="parent",
        adapter=ADAPTER,
        decision=DECISION,
        wanted=wanted,
        approval=ApprovalConfig.model_validate(approval),
    )


def put_into_words(task: SignOffOperator, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stand-in's step put the decision into words."""
    figures = {
        "subject": "Release?",
        "body": HOSTILE,
        "report_page": "#/experiments/1/runs/2/artifacts/r.html",
    }
    monkeypatch.setattr(task, "command", lambda: command)
    monkeypatch.setattr(SignOffOperator, "step", "echo")
    options = {"lines": [], "result": {"figures": figures}}
    request = task.request()
    assert request == {
        "run_id": "parent",
        "inputs": {"adapter": ADAPTER, "decision": DECISION},
        "options": {},
    }
    monkeypatch.setattr(task, "request", lambda: request | {"options": options})


def asked(
    task: SignOffOperator, command: Any, context: Any, monkeypatch: pytest.MonkeyPatch
) -> TaskAwaitingInput:
    """Let the task ask and wait."""
    put_into_words(task, command, monkeypatch)
    with pytest.raises(TaskAwaitingInput) as waiting:
        task.execute(context)
    return waiting.value


def test_a_person_is_shown_the_decision_with_links(
    command: Any, context: Any, request_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = operator(approvers=["alice", "bob"], timeout_hours=1.5)
    waiting = asked(task, command, context, monkeypatch)
    assert (waiting.timeout, waiting.method_name) == (timedelta(hours=1.5), "execute_complete")
    assert request_made["subject"] == "Release?"
    assert request_made["body"] == (
        f"{HOSTILE}\n"
        "[MLflow run](http://127.0.0.1:5000/#/runs/parent) · "
        "[Release report](http://127.0.0.1:5000/#/experiments/1/runs/2/artifacts/r.html)\n\n"
        "Approve with a reason: without one nothing is released. After 1.5 hours it counts as rejected.\n"
    )
    assert (request_made["options"], request_made["defaults"]) == (["Approve", "Reject"], ["Reject"])
    assert request_made["assigned_users"] == [{"id": one, "name": one} for one in ("alice", "bob")]
    assert list(request_made["params"]) == ["reason"]
    assert not request_made["multiple"]
    assert context["ti"].xcoms["asked"] == {"decision_digest": "cd", "adapter_digest": "ab"}
    # What data named is never read as a template.
    assert not {"subject", "body"} & set(task.template_fields)


def test_one_hour_is_an_hour(
    command: Any, context: Any, request_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(operator(timeout_hours=1), command, context, monkeypatch)
    assert "After 1 hour it counts as rejected." in request_made["body"]


def test_everybody_may_answer_where_nobody_is_named(
    command: Any, context: Any, request_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(operator(), command, context, monkeypatch).timeout == timedelta(hours=24)
    assert request_made["assigned_users"] == []


def test_an_earlier_question_is_not_answered_for_a_later_one(
    command: Any, context: Any, request_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(operator(approvers=["alice"]), command, context, monkeypatch)
    # Cleared, with nothing else: the same question.
    asked(operator(approvers=["alice"]), command, context, monkeypatch)
    others = operator(approvers=["bob"])
    put_into_words(others, command, monkeypatch)
    with pytest.raises(AirflowFailException, match=r"to ask 'Release\?', but it still shows"):
        others.execute(context)
    for part in ("subject", "body"):
        monkeypatch.setitem(request_made, part, "of an earlier decision")
        another = operator(approvers=["alice"])
        put_into_words(another, command, monkeypatch)
        with pytest.raises(AirflowFailException, match="Start a new run"):
            another.execute(context)
        monkeypatch.setitem(request_made, part, getattr(another, part))


def test_a_trial_without_a_scheduler_does_not_wait(
    command: Any, context: Any, request_made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    context["dag_run"].triggering_user_name = "dag_test"
    task = operator()
    put_into_words(task, command, monkeypatch)
    answer = task.execute(context)["answer"]
    assert datetime.fromisoformat(answer.pop("at")).tzinfo is not None
    about = {"decision_digest": "cd", "adapter_digest": "ab"}
    assert answer == {"approved": False, "by": None, "reason": "", **about}
    assert request_made == {}


@pytest.mark.parametrize("wanted", [False, None, "True"])
def test_nobody_is_asked_where_the_gate_decides_alone(wanted: Any, context: Any) -> None:
    with pytest.raises(AirflowSkipException, match="nobody is asked: the gate decided alone"):
        operator(wanted).execute(context)


@pytest.mark.parametrize(
    ("user", "chosen", "reason", "answer"),
    [
        (
            {"id": "alice", "name": "alice"},
            "Approve",
            "fine",
            {"approved": True, "by": "alice", "reason": "fine"},
        ),
        ({"id": "7", "name": "Bob"}, "Reject", "no", {"approved": False, "by": "Bob (7)", "reason": "no"}),
        ({"id": "7", "name": "Bob"}, "Approve", None, {"approved": True, "by": "Bob (7)", "reason": ""}),
        (None, "Reject", "", {"approved": False, "by": None, "reason": ""}),
    ],
)
def test_an_answer_is_handed_on_with_what_it_is_about(
    context: Any, user: Any, chosen: str, reason: str | None, answer: dict[str, Any]
) -> None:
    context["ti"].xcoms["asked"] = {"decision_digest": "shown", "adapter_digest": "ab"}
    event = {
        "chosen_options": [chosen],
        "params_input": None if reason is None else {"reason": reason},
        "responded_at": AT,
        "responded_by_user": user,
    }
    about = {"at": "2026-11-01T02:00:00+00:00", "decision_digest": "shown", "adapter_digest": "ab"}
    task = operator()
    assert task.execute_complete(context, event) == {"run_id": "parent", "answer": answer | about}
    assert task.mlflow_run_id == "parent"


def test_the_promotion_is_told_the_answer() -> None:
    task = PromoteOperator(
        task_id="t", run_id="parent", adapter=ADAPTER, decision=DECISION, answer={"approved": True}
    )
    assert task.options() == {"answer": {"approved": True}}
