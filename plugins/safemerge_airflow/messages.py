"""Messages about a run by Airflow's notifiers: verdict, headline figures and links.

Whatever goes wrong with a message is logged and changes nothing else. What data and people may have written
is inserted once and never read as a template.
"""

from __future__ import annotations

import html
import importlib.util
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowFailException

from safemerge.config.people import Event, NotificationConfig
from safemerge.errors import ConfigError
from safemerge.records import StepResult, printable
from safemerge_airflow.mlflow_link import mlflow_page_url, mlflow_run_url

Notifications = Sequence[NotificationConfig]
SIGN_OFF_TASK = "sign_off"
"""Id of the task that waits for a person."""

logger = logging.getLogger(__name__)

FILLED = {
    "subject": "{{ safemerge.subject }}",
    "html_content": "{{ safemerge.html }}",
    "text": "{{ safemerge.text }}",
    "message": "{{ safemerge.text }}",
}
"""Arguments that notifiers of several services take, with what they get where the recipe is silent."""
SAYS = {
    Event.PASS: "passed the gate",
    Event.BLOCK: "was blocked",
    Event.CANNOT_TELL: "the gate could not tell",
    Event.REJECTED: "was not approved",
    Event.PROMOTED: "is the champion",
    Event.FAILURE: "failed",
}


class NotReleasedError(AirflowFailException):
    """The run did all it had to, and the adapter is not to be released: a verdict, no failure of a task."""


class Message(NamedTuple):
    """What templates of a notifier's arguments know as ``safemerge``."""

    event: str
    subject: str
    """One line."""
    summary: str
    """The verdict with its reasons, or what went wrong, in one line."""
    verdict: str
    """``pass``, ``block`` or ``cannot_tell``; empty where there is none."""
    headline: tuple[str, ...]
    """The candidate's main figures, a line each."""
    links: Mapping[str, str]
    """Where to look on: name to address."""

    @property
    def text(self) -> str:
        """All of it as plain text."""
        links = (f"{name}: {address}" for name, address in self.links.items())
        return "\n".join(
            (self.subject, "", self.summary, *(f"- {line}" for line in self.headline), "", *links)
        )

    @property
    def html(self) -> str:
        """All of it as HTML, escaped."""
        figures = "".join(f"<li>{html.escape(line)}</li>" for line in self.headline)
        links = " · ".join(
            f'<a href="{html.escape(address)}">{html.escape(name)}</a>'
            for name, address in self.links.items()
        )
        said = f"<h3>{html.escape(self.subject)}</h3><p>{html.escape(self.summary)}</p>"
        return f"{said}<ul>{figures}</ul><p>{links}</p>"


class FailureMessage:
    """Callback of a task that failed for good, where that is no verdict."""

    def __init__(self, notifications: Notifications) -> None:
        self.notifications = notifications

    def __call__(self, context: Mapping[str, Any]) -> None:
        """Tell of it."""
        error = context.get("exception")
        if isinstance(error, NotReleasedError):
            return
        task = context["ti"].task_id
        summary = f"task {task}: {error or 'ended without a word'}"
        send(self.notifications, Event.FAILURE, context, summary=printable(summary), verdict="", headline=())


def tell(operator: Any, event: Event, context: Mapping[str, Any], result: StepResult) -> None:
    """Send the messages of an operator about what its step gave."""
    figures = result.figures
    version = result.outputs.get("model_version")
    by = f", approved by {figures['approved_by']}" if figures.get("approved_by") else ""
    summary = f"{version.uri}{by}" if version else figures.get("refused", figures.get("summary", ""))
    headline = tuple(line for line in str(figures.get("headline") or "").split("\n") if line)
    send(
        operator.notifications,
        event,
        context,
        summary=printable(str(summary)),
        verdict=str(figures.get("verdict", "")),
        headline=headline,
        links=_more_links(operator, context, result),
    )


def send(
    notifications: Notifications,
    event: Event,
    context: Mapping[str, Any],
    *,
    summary: str,
    verdict: str,
    headline: tuple[str, ...],
    links: Mapping[str, str] | None = None,
) -> None:
    """Send the messages that are wanted for an event; a notifier that fails is logged and passed over."""
    wanted = [one for one in notifications if event in one.on]
    if not wanted:
        return
    dag_run = context["dag_run"]
    subject = f"{dag_run.dag_id}: {SAYS[event]}"
    message = Message(event.value, subject, summary, verdict, headline, _links(context) | dict(links or {}))
    for one in wanted:
        try:
            notifier = _class(one.notifier)
            notifier(**_arguments(notifier, one.args))({**context, "safemerge": message})
        except (Exception, SystemExit):  # a message is no part of the run's work
            logger.exception("notifier %s failed; the run goes on", one.notifier)


def check_notifiers(notifications: Notifications, where: str) -> None:
    """Refuse notifiers whose module is not installed, without loading it.

    Raises:
        ConfigError: lists all of them.
    """
    missing = sorted(
        {one.notifier for one in notifications if not _is_there(one.notifier.rpartition(".")[0])}
    )
    if missing:
        raise ConfigError(
            f"{where}: notifications: expected notifiers that are installed, got no module of "
            f"{', '.join(missing)}"
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _arguments(notifier: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    takes = inspect.signature(notifier).parameters
    return {name: text for name, text in FILLED.items() if name in takes} | dict(given)


def _links(context: Mapping[str, Any]) -> dict[str, str]:
    links = {}
    if run_id := getattr(context["ti"].task, "run_id", None):
        links["MLflow run"] = mlflow_run_url(str(run_id))
    if address := getattr(context["ti"], "log_url", None):
        links["Airflow"] = str(address)
    return links


def _more_links(operator: Any, context: Mapping[str, Any], result: StepResult) -> dict[str, str]:
    """To the step's own run, and to where a person answers."""
    links = {"MLflow run": mlflow_run_url(operator.run_id)} if operator.run_id else {}
    if page := result.figures.get("report_page"):
        links["Report"] = mlflow_page_url(str(page))
    if result.figures.get("ask") is True:
        dag_run = context["dag_run"]
        base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
        links["Answer"] = (
            f"{base}/dags/{dag_run.dag_id}/runs/{quote(dag_run.run_id)}/tasks/{SIGN_OFF_TASK}/required_actions"
        )
    return links
