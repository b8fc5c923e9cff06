"""Typed configuration of what concerns people: who signs, and who is told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from safemerge.config.base import Config

_CLASS_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"


class ApprovalConfig(Config):
    """How a person is asked, where the gate wants one to decide."""

    approvers: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Ids of those who may answer, as Airflow's auth manager knows them: names of users with its simple one,
    their numbers, as text, with FAB's. Where empty: everybody who may answer for the DAG."""
    timeout_hours: Annotated[float, Field(gt=0, le=24 * 90, allow_inf_nan=False)] = 24
    """Hours until what nobody has answered counts as rejected. The recipe's next run waits as long."""


class Event(StrEnum):
    """What a message may be about."""

    PASS = "pass"  # noqa: S105 (no password)
    """The gate let the adapter pass; where the policy wants a signature, one is asked for."""
    BLOCK = "block"
    """The gate blocked it."""
    CANNOT_TELL = "cannot_tell"
    """The gate could not tell; a person is asked, or was not to be."""
    REJECTED = "rejected"
    """A person rejected the adapter, gave no reason, or did not answer in time."""
    PROMOTED = "promoted"
    """It is the champion."""
    FAILURE = "failure"
    """A task failed for good, with no verdict."""


class NotificationConfig(Config):
    """One message about a run, by one of Airflow's notifiers."""

    on: Annotated[tuple[Event, ...], Field(min_length=1)]
    """What it is sent for."""
    notifier: Annotated[str, Field(pattern=_CLASS_PATH)]
    """The notifier's class, such as ``airflow.providers.smtp.notifications.smtp.SmtpNotifier``. Its package
    must be installed on the workers."""
    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Its arguments. Those that the notifier reads as templates may hold ``{{ safemerge.subject }}`` and, the
    same way, ``text``, ``html``, ``event``, ``verdict``, ``summary``, ``headline`` and ``links``. Of the
    arguments ``subject``, ``html_content``, ``text`` and ``message``, those that the notifier takes are
    filled where they are not given."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.on)) < len(self.on):
            raise ValueError(f"expected each event once, got {', '.join(self.on)}")
        return self
