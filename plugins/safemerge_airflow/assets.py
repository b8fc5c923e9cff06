"""Assets of a recipe: the data whose new versions start it, and the champion that it releases.

Holds no logic of a step: it reads what events say and writes what became of a promotion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, AssetAny, AssetOrTimeSchedule, CronTriggerTimetable
from airflow.sdk.exceptions import AirflowFailException

from safemerge.config.recipes import NewData, RecipeConfig, ScheduleConfig
from safemerge.records import StepResult
from safemerge.tracking.champions import champion_event, champion_of

FIRST_RUN_WITHIN = timedelta(minutes=5)
"""How long after its time a recipe's first run may still begin.

Airflow allows a tenth of the schedule if not told, 2.4 hours of a day: a recipe that is new at four would
train at once for two o'clock. None at all would lose the run of a DAG that is parsed again before it begins.
"""


def champion_asset(recipe: RecipeConfig) -> Asset:
    """What deployments follow: an event for every adapter that becomes the champion.

    A DAG of theirs has it as schedule: ``Asset(name="<registered model>@champion", uri="models:/…")``.
    """
    name = champion_of(recipe.tracking.registered_model)
    return Asset(name=name, uri=f"models:/{name}", group="safemerge")


def promotion_event(result: StepResult, run_id: str | None) -> dict[str, Any]:
    """What the event of a promotion carries; ``run_id`` is the pipeline run's in MLflow."""
    released = result.outputs["model_version"]
    model, _, version = released.uri.removeprefix("models:/").rpartition("/")
    approved_by = result.figures.get("approved_by")
    return champion_event(
        model,
        version,
        adapter_digest=released.digest,
        verdict=str(result.figures["verdict"]),
        run_id=run_id,
        **({"approved_by": approved_by} if approved_by else {}),
    )


def data_asset(data: NewData) -> Asset:
    """The asset that announces new versions of a data set."""
    return Asset(name=data.asset, uri=data.uri or data.asset)


def data_assets(data: Iterable[NewData]) -> list[Asset]:
    """One asset for each of several data sets."""
    return [data_asset(item) for item in data]


def schedule_of(schedule: ScheduleConfig) -> Any:
    """A recipe's schedule as Airflow takes it; None where it is run by hand alone."""
    assets = AssetAny(*data_assets(schedule.data)) if schedule.data else None
    time = None
    if schedule.cron:
        time = CronTriggerTimetable(
            schedule.cron, timezone=schedule.timezone, run_immediately=FIRST_RUN_WITHIN
        )
    if assets is not None and time is not None:
        return AssetOrTimeSchedule(timetable=time, assets=assets)
    return assets if assets is not None else time


def data_overrides(
    data: Sequence[NewData], versions: Mapping[str, str | None], context: Mapping[str, Any]
) -> dict[str, str]:
    """Config keys to values, for the versions of the data that this run is to take.

    Of each data set that is the version given, else that of the event which started the run, else the last
    announced before the run was due, so that a run by the clock goes not back behind one by an event. The
    file's own where nothing was announced.

    Args:
        data: what a recipe says of each data set.
        versions: asset to the version given to this run; None where none was.
        context: of the task, which has the assets as inlets.

    Raises:
        AirflowFailException: an event carries no version, or one that no path or hub id could hold.
    """
    overrides: dict[str, str] = {}
    for item in data:
        version = versions.get(item.asset) or _announced(item, context)
        if item.sets and version is not None:
            try:
                overrides |= item.overrides(version)
            except ValueError as error:
                raise AirflowFailException(f"asset {item.asset}: {error}") from error
    return overrides


def _announced(data: NewData, context: Mapping[str, Any]) -> str | None:
    if not data.sets:
        return None
    asset = data_asset(data)
    started = context["triggering_asset_events"].get(asset)
    if started:
        event = max(started, key=lambda one: one.timestamp)
    else:
        due = context["dag_run"].run_after.isoformat()
        event = next(iter(context["inlet_events"][asset].before(due).ascending(False).limit(1)), None)
    if event is None:
        return None
    version = (event.extra or {}).get("version")
    if not isinstance(version, str):
        raise AirflowFailException(
            f'asset {data.asset}: expected an event with extra {{"version": "…"}}, got {event.extra}'
        )
    return version
