"""Typed configuration of a recipe: one retraining, when it is due, and whose it is."""

from __future__ import annotations

import re
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from safemerge.config.base import Config, PlainName
from safemerge.config.people import ApprovalConfig, NotificationConfig
from safemerge.config.pipeline import PipelineConfig

VERSION = "{version}"
"""What stands for an event's version in :attr:`NewData.sets`."""
VERSION_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
"""Versions that an event may carry: nothing that could lead a path or a hub id elsewhere."""

_SET_BY_EVENTS = re.compile(
    r"(task_training|safety_training)\.data\.(\d+)\.(path|name|split|revision)"
    r"|evaluation\.(suites)\.(\d+)\.(path|revision)"
)
"""Config keys that an event may set: which data, and never how they are used or judged."""
_CRON_FIELDS = 5


def _known_cron(expression: str) -> str:
    fields = expression.split()
    is_preset = expression in ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")
    if not is_preset and len(fields) != _CRON_FIELDS:
        raise ValueError(
            'expected minute, hour, day of month, month and day of week, such as "0 2 * * *", '
            f"or @daily, got {expression!r}"
        )
    try:  # comes with Airflow; without it the number of fields is all that is checked
        from croniter import CroniterBadDateError, croniter
    except ImportError:
        return expression
    if not is_preset and not croniter.is_valid(expression):
        raise ValueError(f"expected a cron expression, got {expression!r}")
    try:
        croniter(expression).get_next()
    except CroniterBadDateError as error:  # Airflow takes it, and waits for ever
        raise ValueError(f"expected a time that comes, got {expression!r}, as of February 30") from error
    return expression


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"expected a time zone, such as Europe/Berlin, got {name!r}") from error
    return name


class NewData(Config):
    """A data set whose new versions start a run. Others announce them as events of an Airflow asset.

    An event says which version it is in its ``extra``: ``{"version": "2026-11-01"}``.
    """

    asset: PlainName
    """Name of the asset."""
    uri: Annotated[str, Field(min_length=1)] | None = None
    """Its address, where the asset is made elsewhere with one."""
    sets: dict[str, str] = Field(default_factory=dict)
    """Config keys that the version replaces, each with the new value, in which ``{version}`` stands for it:
    ``task_training.data.0.revision: "{version}"``. Where empty, an event starts a run and changes nothing."""

    @model_validator(mode="after")
    def _keys_of_data(self) -> Self:
        wrong = []
        if others := [key for key in self.sets if not _SET_BY_EVENTS.fullmatch(key)]:
            wrong.append(
                "expected sets to name keys of data, such as task_training.data.0.revision, got "
                f"{', '.join(others)}"
            )
        wrong += [
            f"expected sets.{key} to hold {VERSION}, got {value!r}"
            for key, value in self.sets.items()
            if key not in others and VERSION not in value
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def overrides(self, version: str) -> dict[str, str]:
        """Dotted config keys to values, for a version.

        Raises:
            ValueError: it is not one that a path or a hub id could hold.
        """
        if not re.fullmatch(VERSION_PATTERN, version):
            raise ValueError(f"expected letters, digits and . _ + - in a version, got {version!r}")
        return {key: value.replace(VERSION, version) for key, value in self.sets.items()}


class ScheduleConfig(Config):
    """When a recipe is due: by time, by new data, by both, or by hand alone where all is empty."""

    cron: Annotated[str, AfterValidator(_known_cron)] | None = None
    """Minute, hour, day of month, month and day of week, such as ``0 2 * * *``; or ``@daily``."""
    timezone: Annotated[str, AfterValidator(_known_timezone)] = "UTC"
    data: tuple[NewData, ...] = ()
    """Data sets; a new version of any of them starts a run."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [data.asset for data in self.data]
        keys = [key for data in self.data for key in data.sets]
        for what in (names, keys):
            if twice := sorted({name for name in what if what.count(name) > 1}):
                raise ValueError(f"expected each asset and each key once, got twice: {', '.join(twice)}")
        return self


class RecipeConfig(PipelineConfig):
    """One retraining: a pipeline, when it is due, and whose it is. One recipe is one DAG."""

    description: str | None = None
    """One line for the list of DAGs."""
    schedule: ScheduleConfig = ScheduleConfig()
    owners: Annotated[tuple[PlainName, ...], Field(min_length=1)] = ("safemerge",)
    """Whose it is: names of people or teams."""
    approval: ApprovalConfig = ApprovalConfig()
    """Who answers where a person decides, and for how long they are waited for."""
    notifications: tuple[NotificationConfig, ...] = ()
    """Messages about a run, by Airflow's notifiers."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = ()
    """To find it by, beside ``safemerge``."""

    @model_validator(mode="after")
    def _events_set_what_is_there(self) -> Self:
        have = {
            "task_training": len(self.task_training.data),
            "safety_training": len(self.safety_training.data),
            "suites": len(self.evaluation.suites),
        }
        wrong = []
        for key in (key for data in self.schedule.data for key in data.sets):
            found = _SET_BY_EVENTS.fullmatch(key)
            part, number = (found[1] or found[4], found[2] or found[5]) if found else ("", "0")
            if int(number) >= have.get(part, 0):
                wrong.append(f"expected schedule.data to set one of {have.get(part)}, got {key}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def pipeline(self) -> PipelineConfig:
        """What a run does, without when and for whom."""
        return PipelineConfig.model_validate(
            {name: getattr(self, name) for name in PipelineConfig.model_fields}
        )
