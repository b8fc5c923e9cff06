"""Messages: who is told what, and that no message is a danger to a run."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.bases.notifier import BaseNotifier
from airflow.sdk.exceptions import AirflowFailException

from safemerge.config.people import Event, NotificationConfig
from safemerge.errors import ConfigError
from safemerge.records import ArtifactRef, StepResult
from safemerge_airflow.messages import FailureMessage, NotReleasedError, check_notifiers, send, tell
from safemerge_airflow.operators import GateOperator, PromoteOperator

HERE = f"{__name__}.Recorder"
HOSTILE = "<b>& {{ 7 * 7 }} \x1b[31m"
SENT: list[dict[str, Any]] = []


class Recorder(BaseNotifier):
    """Keeps what it was to send."""

    template_fields = ("subject", "text", "html_content")

    def __init__(self, subject: str = "", text: str = "", html_content: str = "", plain: str = "") -> None:
        super().__init__()
        self.subject, self.text, self.html_content, self.plain = subject, text, html_content, plain

    def notify(self, context: Any) -> None:
        SENT.append({name: getattr(self, name) for name in ("subject", "text", "html_content", "plain")})
        if self.plain == "fail":
            raise RuntimeError("no such server")
        if self.plain == "exit":
            sys.exit("no such server")


@pytest.fixture(autouse=True)
def _nothing_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    SENT.clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("safemerge_airflow.messages._class", lambda path: {HERE: Recorder}[path])


@pytest.fixture
def context() -> dict[str, Any]:
    ti = SimpleNamespace(task=SimpleNamespace(run_id="parent"), task_id="t", log_url="http://af/log")
    return {"ti": ti, "dag_run": SimpleNamespace(dag_id="night", run_id="r 1")}


def wanted(*events: str, notifier: str = HERE, **args: Any) -> NotificationConfig:
    return NotificationConfig.model_validate({"on": events, "notifier": notifier, "args": args})


def result(step: str = "gate", outputs: Any = None, **figures: Any) -> StepResult:
    return StepResult(step=step, run_id="s", inputs_digest="d", outputs=outputs or {}, figures=figures)


def gate(*notifications: NotificationConfig) -> GateOperator:
    return GateOperator(
        task_id="gate",
        run_id="parent",
        candidate=None,
        aligned=None,
        fine_tuned=None,
        adapter=None,
        notifications=notifications,
    )


def test_a_message_has_verdict_figures_and_links(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://af")
    found = result(
        verdict="cannot_tell",
        summary=HOSTILE,
        headline="harmful rate 5 %\nutility 0.5",
        ask=True,
        report_page="#/r.html",
    )
    tell(gate(wanted("cannot_tell")), Event.CANNOT_TELL, context, found)
    (sent,) = SENT
    assert sent["subject"] == "night: the gate could not tell"
    assert sent["text"] == (
        "night: the gate could not tell\n\n"
        "<b>& {{ 7 * 7 }} \ufffd[31m\n- harmful rate 5 %\n- utility 0.5\n\n"
        "MLflow run: http://127.0.0.1:5000/#/runs/parent\n"
        "Airflow: http://af/log\n"
        "Report: http://127.0.0.1:5000/#/r.html\n"
        "Answer: http://af/dags/night/runs/r%201/tasks/sign_off/required_actions"
    )
    assert "<p>&lt;b&gt;&amp; {{ 7 * 7 }} \ufffd[31m</p><ul><li>harmful rate 5 %</li>" in sent["html_content"]
    assert '<a href="http://127.0.0.1:5000/#/r.html">Report</a>' in sent["html_content"]


def test_arguments_that_are_given_win_and_may_use_all_of_it(context: dict[str, Any]) -> None:
    given = wanted(
        "pass", subject="{{ safemerge.event }} {{ safemerge.verdict }} {{ safemerge.links['Airflow'] }}"
    )
    tell(gate(given), Event.PASS, context, result(verdict="pass", summary="PASS"))
    assert SENT[0]["subject"] == "pass pass http://af/log"
    assert SENT[0]["plain"] == ""


def test_only_what_is_wanted_is_sent(context: dict[str, Any]) -> None:
    tell(gate(wanted("block", "failure"), wanted("pass")), Event.PASS, context, result(verdict="pass"))
    assert len(SENT) == 1


@pytest.mark.parametrize(
    "bad",
    [
        wanted("pass", plain="fail"),
        wanted("pass", plain="exit"),
        wanted("pass", notifier="no.such.Notifier"),
    ],
)
def test_a_notifier_that_fails_stops_nothing(
    context: dict[str, Any], bad: NotificationConfig, caplog: pytest.LogCaptureFixture
) -> None:
    tell(gate(bad, wanted("pass")), Event.PASS, context, result(verdict="pass"))
    assert SENT[-1]["plain"] == ""
    assert f"notifier {bad.notifier} failed; the run goes on" in caplog.text


@pytest.mark.parametrize(
    ("figures", "event", "fails"),
    [
        ({"passed": True, "verdict": "pass"}, "pass", False),
        ({"passed": False, "verdict": "block", "summary": "BLOCK"}, "block", True),
        ({"passed": False, "verdict": "cannot_tell", "ask": True}, "cannot_tell", False),
        ({"passed": False, "verdict": "cannot_tell", "ask": False}, "cannot_tell", True),
        ({"passed": True, "verdict": "pass", "ask": True}, "pass", False),
    ],
)
def test_the_gate_tells_its_verdict_and_asks_only_where_a_person_decides(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, figures: Any, event: str, fails: bool
) -> None:
    pushed: dict[str, Any] = {}
    context["ti"].xcom_push = lambda key, value: pushed.update({key: value})
    task = gate(wanted("pass", "block", "cannot_tell", subject="{{ safemerge.event }}"))
    monkeypatch.setattr(task, "run_step", lambda context: result(**figures))
    if fails:
        with pytest.raises(NotReleasedError):
            task.execute(context)
        assert pushed["ask"] is False
    else:
        assert task.execute(context)["ask"] is (figures.get("ask") is True)
    assert [sent["subject"] for sent in SENT] == [event]


def test_the_promotion_tells_of_the_champion_and_of_a_refusal(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = wanted("promoted", "rejected", subject="{{ safemerge.event }}: {{ safemerge.summary }}")
    task = PromoteOperator(task_id="t", run_id="p", adapter=None, decision=None, notifications=[told])
    version = {"model_version": ArtifactRef(uri="models:/m/3", digest="ab")}
    good = result("promote", version, version="3", verdict="pass", approved_by="alice")
    monkeypatch.setattr(task, "run_step", lambda context: good)
    assert task.execute(context)["model_version"]["uri"] == "models:/m/3"
    monkeypatch.setattr(task, "run_step", lambda context: result("promote", refused="rejected by bob: no"))
    with pytest.raises(NotReleasedError, match=r"^rejected by bob: no$"):
        task.execute(context)
    expected = ["promoted: models:/m/3, approved by alice", "rejected: rejected by bob: no"]
    assert [sent["subject"] for sent in SENT] == expected


def test_a_failure_is_told_and_a_verdict_is_none(context: dict[str, Any]) -> None:
    callback = FailureMessage([wanted("failure", subject="{{ safemerge.summary }}")])
    callback(context | {"exception": AirflowFailException("out of memory")})
    callback(context | {"exception": NotReleasedError("BLOCK")})
    callback(context)
    assert [sent["subject"] for sent in SENT] == ["task t: out of memory", "task t: ended without a word"]


def test_notifiers_are_looked_for_without_loading_them() -> None:
    smtp = "airflow.providers.smtp.notifications.smtp.SmtpNotifier"
    check_notifiers([wanted("pass", notifier=smtp)], "night.yaml")
    with pytest.raises(ConfigError, match=r"night.yaml: notifications: .* got no module of a.B, smtpx.c.D$"):
        check_notifiers([wanted("pass", notifier=one) for one in ("smtpx.c.D", "a.B", smtp)], "night.yaml")


def test_the_smtp_notifier_takes_what_is_filled_in(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    sent: dict[str, Any] = {}
    monkeypatch.setattr("safemerge_airflow.messages._class", lambda path: SmtpNotifier)
    monkeypatch.setattr(SmtpNotifier, "notify", lambda self, context: sent.update(vars(self)))
    told = wanted("pass", notifier="smtp.SmtpNotifier", to="ops@example.org", from_email="air@example.org")
    send([told], Event.PASS, context, summary=HOSTILE, verdict="pass", headline=())
    assert sent["subject"] == "night: passed the gate"
    assert "&lt;b&gt;&amp; {{ 7 * 7 }}" in sent["html_content"]
