"""The task that waits for a person, where the gate wants one to decide.

Holds no slot while it waits. It judges no answer: the promotion does, which refuses one without a reason or
about another decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from airflow.providers.standard.operators.hitl import ApprovalOperator, HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from safemerge.config.people import ApprovalConfig
from safemerge_airflow.mlflow_link import mlflow_page_url, mlflow_run_url
from safemerge_airflow.operators import Artifact, SafemergeStepOperator

ASKED = "asked"
"""XCom of what the person was shown: digests of decision and adapter."""
DAG_TEST = "dag_test"
"""Who starts the runs of ``airflow dags test``. There, no scheduler looks after the time-out."""


class SignOffOperator(SafemergeStepOperator, HITLOperator):
    """Asks a person to approve or reject, in Airflow's UI or by its REST API; pushes ``answer``.

    Skipped where nobody is to be asked. Without an answer in time it counts as rejected. Either answer lets
    the task succeed, so that the promotion records it.

    Args:
        adapter: the candidate.
        decision: the gate's decision about it.
        wanted: whether a person decides.
        approval: who may answer, and how long they are waited for.
    """

    step = "ask"
    step_inputs: ClassVar[tuple[str, ...]] = ("adapter", "decision")
    # Subject and body hold what data named: they are never read as templates.
    template_fields = ("run_id", "adapter", "decision", "wanted")
    ui_color = "#e7d6ee"

    def __init__(
        self,
        *,
        adapter: Artifact | None,
        decision: Artifact | None,
        wanted: bool | None,
        approval: ApprovalConfig,
        **kwargs: Any,
    ) -> None:
        reason = Param(
            "",
            type="string",
            maxLength=1000,
            title="Reason",
            description="Why; without a reason nothing is released.",
        )
        super().__init__(
            subject="Release the adapter?",
            options=[ApprovalOperator.APPROVE, ApprovalOperator.REJECT],
            defaults=ApprovalOperator.REJECT,
            params={"reason": reason},
            assigned_users=[{"id": one, "name": one} for one in approval.approvers] or None,
            response_timeout=timedelta(hours=approval.timeout_hours),
            **kwargs,
        )
        self.adapter = adapter
        self.decision = decision
        self.wanted = wanted
        self.approval = approval

    def request(self) -> dict[str, Any]:
        """What the step is asked; it has no options: here, they are what the person may choose."""
        return {"run_id": self.run_id, "inputs": self.inputs(), "options": {}}

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Put the decision into words and wait for an answer; `airflow dags test` has none to wait for.

        Raises:
            AirflowSkipException: the gate decided alone, or the answer would change nothing.
            AirflowFailException: Airflow shows an earlier question, and so the answer would be to that.
            TaskAwaitingInput: how Airflow is told to wait.
        """
        if self.wanted is not True or self.decision is None or self.adapter is None:
            raise AirflowSkipException("nobody is asked: the gate decided alone")
        result = self.run_step(context)
        self.subject = str(result.figures["subject"])
        links = self._links(result.figures.get("report_page"))
        self.body = f"{result.figures['body']}\n{links}\n\n{self._terms()}\n"
        shown = {"decision_digest": self.decision["digest"], "adapter_digest": self.adapter["digest"]}
        context["ti"].xcom_push(ASKED, shown)
        if getattr(context["dag_run"], "triggering_user_name", None) == DAG_TEST:
            self.log.warning(
                "airflow dags test would wait for ever: it asks nobody, which counts as rejected"
            )
            return self.execute_complete(context, self._unanswered())
        self._show(context)
        return HITLOperator.execute(self, context)

    def execute_complete(self, context: Mapping[str, Any], event: dict[str, Any]) -> dict[str, Any]:
        """Hand on what was answered, about what the person was shown."""
        self.mlflow_run_id = self.run_id
        said = HITLOperator.execute_complete(self, context, event)
        user = said["responded_by_user"]
        answer = {
            "approved": said["chosen_options"] == [ApprovalOperator.APPROVE],
            "by": _named(user) if user else None,
            "at": said["responded_at"].isoformat(timespec="seconds"),
            "reason": str((said["params_input"] or {}).get("reason") or ""),
            **context["ti"].xcom_pull(task_ids=self.task_id, key=ASKED),
        }
        self.log.info("%s", answer)
        return {"run_id": self.run_id, "answer": answer}

    def _show(self, context: Mapping[str, Any]) -> None:
        """Have Airflow show the question, and see that it does.

        Of a task that was cleared, it keeps text and approvers of the first question, whatever it is told.
        """
        from airflow.sdk.execution_time.comms import CreateHITLDetailPayload
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        approvers = self.assigned_users or []
        question = CreateHITLDetailPayload.model_validate(
            {
                "ti_id": context["ti"].id,
                "subject": self.subject,
                "body": self.body,
                "options": self.options,
                "defaults": self.defaults,
                "params": self.serialized_params,
                "assigned_users": approvers,
            }
        )
        shown: Any = SUPERVISOR_COMMS.send(question)
        known = [user.model_dump() for user in shown.assigned_users or []]
        if (shown.subject, shown.body, known) != (self.subject, self.body, approvers):
            raise AirflowFailException(
                f"expected Airflow to ask {self.subject!r}, but it still shows the question of this task "
                f"before it was cleared, {shown.subject!r}, with its text and approvers. Start a new run, "
                "which repeats nothing that is done and asks anew"
            )

    def _unanswered(self) -> dict[str, Any]:
        """What Airflow hands on where nobody answered in time."""
        return {
            "chosen_options": self.defaults,
            "params_input": {},
            "responded_at": datetime.now(UTC),
            "responded_by_user": None,
        }

    def _links(self, report_page: Any) -> str:
        links = {"MLflow run": mlflow_run_url(str(self.run_id))}
        if report_page:
            links["Release report"] = mlflow_page_url(str(report_page))
        return " · ".join(f"[{name}]({address})" for name, address in links.items())

    def _terms(self) -> str:
        count = self.approval.timeout_hours
        hours = f"{count:g} hour{'' if count == 1 else 's'}"
        return f"Approve with a reason: without one nothing is released. After {hours} it counts as rejected."


def _named(user: Mapping[str, str]) -> str:
    name, known_as = user["name"], user["id"]
    return name if name == known_as else f"{name} ({known_as})"
