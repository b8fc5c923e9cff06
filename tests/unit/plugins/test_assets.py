"""What events say to a run, and what a promotion says to others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, Self

import pendulum
import pytest
from airflow.sdk import Asset, AssetAny, AssetOrTimeSchedule, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.encoders import coerce_to_core_timetable
from airflow.timetables.base import TimeRestriction

from safemerge.config.recipes import NewData, ScheduleConfig
from safemerge.records import ArtifactRef, StepResult
from safemerge_airflow.assets import (
    FIRST_RUN_WITHIN,
    data_asset,
    data_overrides,
    promotion_event,
    schedule_of,
)

DUE = datetime(2026, 11, 1, 2, tzinfo=UTC)
KEY = "task_training.data.0.revision"
DATA = (NewData(asset="tickets", sets={KEY: "{version}"}),)


def event(version: Any, hours: float = -1) -> SimpleNamespace:
    extra = version if isinstance(version, dict) else {"version": version}
    return SimpleNamespace(timestamp=DUE + timedelta(hours=hours), extra=extra)


class Announced:
    """Events of an inlet, asked for as Airflow's accessor is."""

    def __init__(self, events: list[SimpleNamespace]) -> None:
        self.events = sorted(events, key=lambda one: one.timestamp)

    def before(self, time: str) -> Self:
        self.events = [one for one in self.events if one.timestamp < datetime.fromisoformat(time)]
        return self

    def ascending(self, ascending: bool) -> Self:
        self.events = self.events if ascending else self.events[::-1]
        return self

    def limit(self, limit: int) -> list[SimpleNamespace]:
        return self.events[:limit]


def context(
    started: list[SimpleNamespace] | None = None, announced: list[SimpleNamespace] | None = None
) -> dict[str, Any]:
    asset = data_asset(DATA[0])
    return {
        "triggering_asset_events": {asset: started} if started else {},
        "inlet_events": {asset: Announced(announced or [])},
        "dag_run": SimpleNamespace(run_after=DUE),
    }


def version_of(context: dict[str, Any], given: str | None = None) -> str | None:
    return data_overrides(DATA, {"tickets": given}, context).get(KEY)


def test_a_run_takes_the_version_that_started_it() -> None:
    assert version_of(context([event("v2", -1), event("v1", -2)], [event("v3", -0.5)])) == "v2"


def test_a_run_by_the_clock_takes_the_version_announced_last_before_it_was_due() -> None:
    announced = [event("v1", -2), event("v2", -1), event("v3", 1)]
    assert version_of(context(None, announced)) == "v2"


def test_a_version_given_by_hand_wins() -> None:
    assert version_of(context([event("v2")]), "v0") == "v0"


def test_where_nothing_was_announced_the_file_says() -> None:
    assert version_of(context()) is None


def test_an_asset_that_sets_nothing_only_starts_runs() -> None:
    data = (NewData(asset="tickets"),)
    assert data_overrides(data, {}, context([event({"anything": 1})])) == {}


@pytest.mark.parametrize("extra", [{}, {"Version": "v1"}, {"version": 7}, {"version": None}])
def test_an_event_without_a_version_starts_nothing_in_its_place(extra: dict[str, Any]) -> None:
    with pytest.raises(AirflowFailException, match=r'asset tickets: expected an event with extra {"version"'):
        version_of(context([event(extra)]))


@pytest.mark.parametrize("version", ["../../etc", "a/b", "a b"])
def test_a_version_that_leads_elsewhere_is_refused(version: str) -> None:
    for given, started in ((version, None), (None, [event(version)])):
        with pytest.raises(AirflowFailException, match="asset tickets: expected letters, digits and"):
            version_of(context(started), given)


def test_a_schedule_is_time_or_data_or_both_or_neither() -> None:
    data = (NewData(asset="a"), NewData(asset="b", uri="s3://bucket/b"))
    assert schedule_of(ScheduleConfig()) is None
    assert schedule_of(ScheduleConfig(cron="0 2 * * *", timezone="Europe/Berlin")) == CronTriggerTimetable(
        "0 2 * * *", timezone="Europe/Berlin", run_immediately=FIRST_RUN_WITHIN
    )
    either = schedule_of(ScheduleConfig(data=data))
    assert isinstance(either, AssetAny)
    assert [asset.uri for asset in either.objects] == ["a", "s3://bucket/b"]
    both = schedule_of(ScheduleConfig(cron="0 2 * * *", data=data))
    assert isinstance(both, AssetOrTimeSchedule)
    assert both.asset_condition == either


@pytest.mark.parametrize(
    ("now", "first"),
    [("01:59", "26T02:00"), ("02:04", "26T02:00"), ("02:06", "27T02:00"), ("04:00", "27T02:00")],
)
def test_a_recipe_that_is_new_waits_for_its_time(
    now: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = pendulum.parse(f"2026-11-26T{now}:00+00:00")
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: at)
    run = coerce_to_core_timetable(schedule_of(ScheduleConfig(cron="0 2 * * *"))).next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(None, None, catchup=False)
    )
    assert run is not None
    assert run.run_after == pendulum.parse(f"2026-11-{first}:00+00:00")


@pytest.mark.parametrize(
    ("before", "runs"),
    [
        ("2026-03-28T03:00", ["2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"]),
        ("2026-10-24T03:00", ["2026-10-25T02:30:00+01:00", "2026-10-26T02:30:00+01:00"]),
    ],
    ids=["spring", "autumn"],
)
def test_a_nightly_recipe_runs_once_a_night_where_clocks_change(
    before: str, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = ScheduleConfig(cron="30 2 * * *", timezone="Europe/Berlin")
    timetable = coerce_to_core_timetable(schedule_of(schedule))
    now, last, seen = pendulum.parse(before, tz=schedule.timezone), None, []
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: now)
    for _ in runs:
        run = timetable.next_dagrun_info(
            last_automated_data_interval=last, restriction=TimeRestriction(None, None, catchup=False)
        )
        assert run is not None
        now, last = run.run_after, run.data_interval
        seen.append(now.in_timezone(schedule.timezone).isoformat())
    assert seen == runs


def test_a_promotion_says_what_became_the_champion() -> None:
    version = ArtifactRef(uri="models:/m/3", digest="ab")
    result = StepResult(
        step="promote",
        run_id="step",
        inputs_digest="d",
        outputs={"model_version": version},
        figures={"version": "3", "alias": "champion", "verdict": "pass"},
    )
    assert promotion_event(result, "pipeline") == {
        "version": "3",
        "model": "models:/m/3",
        "adapter_digest": "ab",
        "verdict": "pass",
        "run_id": "pipeline",
    }


def test_an_asset_is_known_by_name_and_address() -> None:
    assert data_asset(NewData(asset="a", uri="s3://bucket/a")) == Asset(name="a", uri="s3://bucket/a")
