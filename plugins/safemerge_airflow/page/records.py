"""Pipeline runs and model versions, as MLflow's REST API tells them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from safemerge.records import SMOKE_MARK, Verdict, printable
from safemerge.tracking import tags
from safemerge.tracking.champions import ALIAS
from safemerge.tracking.figures import ArmFigures, RunFigures, SuiteFigure

Json = Mapping[str, Any]


class PipelineRun(NamedTuple):
    """One run of a pipeline. Texts are what MLflow holds, but for control characters: treat them as data."""

    run_id: str
    pipeline: str
    run_key: str
    """``<DAG id>/<run id>``, or a name that the run was given."""
    status: str
    """MLflow's word: RUNNING, FINISHED, FAILED, KILLED, SCHEDULED."""
    started_ms: int
    """When the scheduler's run of it began, which may go on with an older record of MLflow's."""
    last_started_ms: int
    """Later than that where it was started again, or another run was given its key: the record goes on."""
    ended_ms: int | None
    """None where it goes on, or waits for a person."""
    verdict: Verdict | None
    summary: str
    report: tuple[str, str] | None
    """Run and path of its report's page; None where it has none."""
    arms: Mapping[str, ArmFigures]
    registered_model: str | None
    sign_off: str | None
    """What became of the question to a person, such as ``waiting``; None where nobody was asked."""
    model_version: str | None
    """``models:/<name>/<version>`` that this run made the champion; None where it made none."""

    @property
    def by_smoke_judge(self) -> bool:
        """Whether its summary says so of its verdict."""
        return _by_smoke_judge(self.summary)

    @property
    def dag_id(self) -> str:
        """The DAG that ran it; the whole key where it names none."""
        return self.run_key.partition("/")[0]

    @property
    def last_event_ms(self) -> int:
        """When it was started or ended last."""
        return max(self.last_started_ms, self.ended_ms or 0)


class ModelVersion(NamedTuple):
    """One version of a registered model; texts as with runs."""

    version: str
    created_ms: int
    verdict: Verdict | None
    summary: str
    adapter_digest: str
    pipeline_run_id: str | None
    approved_by: str | None
    """Person who let it through; None where the gate did, alone."""
    approval_reason: str
    moves: tuple[str, ...]
    """What people did with it later: that it was taken back, or put in another's place."""
    is_told: bool = True
    """Whether more is told of it than that it is there."""

    @property
    def by_smoke_judge(self) -> bool:
        """Whether its summary says so of its verdict."""
        return _by_smoke_judge(self.summary)

    def withheld(self) -> ModelVersion:
        """The same without what a run that a user may not see came to, and people said of it."""
        return ModelVersion(self.version, self.created_ms, None, "", "", None, None, "", (), is_told=False)


def pipeline_run(run: Json) -> PipelineRun | None:
    """A run of MLflow's as a pipeline run; None where it is something else."""
    info, tagged = run["info"], _by_key(run.get("data", {}).get("tags", []))
    if tagged.get(tags.KIND) != "pipeline":
        return None
    started_ms = _time_ms(tagged.get(tags.OPENED, "")) or int(info["start_time"])
    return PipelineRun(
        run_id=info["run_id"],
        pipeline=tagged.get(tags.PIPELINE, ""),
        run_key=tagged.get(tags.RUN_KEY, ""),
        status=info["status"],
        started_ms=started_ms,
        last_started_ms=_time_ms(tagged.get(tags.STARTED, "")) or started_ms,
        ended_ms=int(info["end_time"]) if info.get("end_time") and not _goes_on(info, tagged) else None,
        verdict=_verdict(tagged),
        summary=tagged.get(tags.VERDICT_SUMMARY, ""),
        report=_report(tagged.get(tags.REPORT, "")),
        arms=_arms(tagged.get(tags.FIGURES)),
        registered_model=tagged.get(tags.REGISTERED_MODEL),
        sign_off=tagged.get(tags.SIGN_OFF),
        model_version=tagged.get(tags.MODEL_VERSION),
    )


def model_version(version: Json) -> ModelVersion:
    """A version of a registered model."""
    tagged = _by_key(version.get("tags", []))
    return ModelVersion(
        version=str(version["version"]),
        created_ms=int(version["creation_timestamp"]),
        verdict=_verdict(tagged),
        summary=tagged.get(tags.VERDICT_SUMMARY, ""),
        adapter_digest=tagged.get(tags.ADAPTER_DIGEST, ""),
        pipeline_run_id=tagged.get(tags.PIPELINE_RUN),
        approved_by=tagged.get(tags.APPROVED_BY),
        approval_reason=tagged.get(tags.APPROVAL_REASON, ""),
        moves=tuple(
            f"{what} {tagged[prefix + 'at']} by {tagged.get(prefix + 'by', '')}: "
            f"{tagged.get(prefix + 'reason', '')}"
            for what, prefix in (("taken back", tags.ROLLED_BACK), ("put back", tags.RESTORED))
            if prefix + "at" in tagged
        ),
    )


def champions(models: Json) -> dict[str, str]:
    """Registered model to the version that is its champion."""
    return {
        model["name"]: str(alias["version"])
        for model in models.get("registered_models", [])
        for alias in model.get("aliases", [])
        if alias["alias"] == ALIAS
    }


def _by_key(pairs: list[Json]) -> dict[str, str]:
    return {pair["key"]: printable(pair.get("value", "")) for pair in pairs}


def _report(uri: str) -> tuple[str, str] | None:
    """Only a run's artifact: a tag may hold anything."""
    found = re.fullmatch(r"runs:/([0-9a-f]{32})/([\w./-]+\.html)", uri)
    return found and (found[1], found[2])


def _time_ms(text: str) -> int | None:
    """Only a time that can be written as a date: a tag may hold anything."""
    found = re.fullmatch(r"[0-9]{1,13}", text)
    return found and int(found[0])


def _goes_on(info: Json, tagged: Mapping[str, str]) -> bool:
    """Whether an end that MLflow has is that of the attempt before, or the gate's, which a person follows."""
    return info["status"] == "RUNNING" or tagged.get(tags.SIGN_OFF) == "waiting"


def _by_smoke_judge(summary: str) -> bool:
    # Not only at its beginning: of a version, what a person answered comes first.
    return f"{SMOKE_MARK}: " in summary


def _verdict(tagged: Mapping[str, str]) -> Verdict | None:
    try:
        return Verdict(tagged.get(tags.VERDICT, ""))
    except ValueError:
        return None


def _arms(text: str | None) -> Mapping[str, ArmFigures]:
    """The figures that the gate noted; none where it did not, or another version of it did."""
    try:
        arms = RunFigures.model_validate_json(text or "").arms
    except ValidationError:
        return {}
    return {name: arm.model_copy(update={"suites": _shown(arm.suites)}) for name, arm in arms.items()}


def _shown(suites: Mapping[str, SuiteFigure]) -> dict[str, SuiteFigure]:
    return {printable(name): figure for name, figure in suites.items()}
