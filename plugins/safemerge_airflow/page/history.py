"""Pipeline runs and champions as MLflow has them now, kept for some seconds.

MLflow takes most of a millisecond for every run that it returns. So the newest runs are asked
for whenever the page is, and older ones in the background: nobody waits for a thousand runs.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar, cast

import httpx

from safemerge.tracking import tags
from safemerge.tracking.champions import ALIAS
from safemerge_airflow.page.mlflow_api import Json, MlflowApi, MlflowUnavailableError, connect
from safemerge_airflow.page.records import ModelVersion, PipelineRun, champions, model_version, pipeline_run

logger = logging.getLogger(__name__)

FRESH_S = 5.0
"""For so long an answer of MLflow is given again."""
FAILED_S = 1.0
"""The same for a failure: MLflow may be back at once, and may have been asked before it was there."""
OLDER_FRESH_S = 60.0
"""The same for all but the newest runs, which are unlikely to change."""
NEWEST = 100
"""Runs asked for while someone waits."""
BATCH = 200
"""Runs asked for at a time in the background, so that MLflow has time for others in between."""
MOST = 2000
"""Runs that the overview looks back over."""
VERSIONS = 100
"""Versions of a model that its history goes back to."""

PIPELINE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
"""What a pipeline's config allows as its name; safe in MLflow's filters."""

Answer = TypeVar("Answer")


class History:
    """Reads pipeline runs and model versions, from any number of threads.

    Args:
        connect: makes the connection to MLflow, with the first question.
    """

    def __init__(self, connect: Callable[[], MlflowApi] = connect) -> None:
        self._connect = connect
        self._cache = Cache()
        self._older: tuple[PipelineRun, ...] | None = None
        self._older_since_s = float("-inf")
        self._older_reading = threading.Lock()

    def recent_runs(self) -> list[PipelineRun]:
        """Runs of all pipelines, the newest first; see :attr:`is_complete`."""
        newest, page_token = self._cache.get("newest", FRESH_S, lambda: self._search(_filter(), NEWEST))
        if page_token is None:
            self._older = ()
        elif time.monotonic() - self._older_since_s > OLDER_FRESH_S:
            self._start_reading_older(page_token)
        known = {run.run_id: run for run in (*(self._older or ()), *newest)}
        return sorted(known.values(), key=_started_ms, reverse=True)

    @property
    def is_complete(self) -> bool:
        """Whether :meth:`recent_runs` gives older runs too, not only the newest."""
        return self._older is not None

    def runs_of(self, pipeline: str) -> list[PipelineRun]:
        """The newest runs of one pipeline, the newest first; none where the name cannot be one."""
        if not PIPELINE_NAME.fullmatch(pipeline):
            return []
        return self._cache.get(
            ("runs", pipeline), FRESH_S, lambda: self._search(_filter(pipeline), NEWEST)
        ).runs

    def run(self, run_id: str) -> PipelineRun | None:
        """One pipeline run; None where there is none."""

        def read() -> PipelineRun | None:
            found = self._api.run(run_id)
            return pipeline_run(found) if found else None

        return self._cache.get(("run", run_id), FRESH_S, read)

    def champions(self) -> dict[str, str]:
        """Registered model to the version that is its champion."""

        def read() -> dict[str, str]:
            return {
                model: version
                for page in _pages(self._api.registered_models)
                for model, version in champions(page).items()
            }

        return self._cache.get("champions", FRESH_S, read)

    def champion(self, model: str) -> str | None:
        """The version of one registered model that is its champion; None where there is none."""

        def read() -> str | None:
            found = self._api.version_by_alias(model, ALIAS)
            return None if found is None else str(found["version"])

        return self._cache.get(("champion", model), FRESH_S, read)

    def versions(self, model: str) -> list[ModelVersion]:
        """Versions of a registered model, the newest first."""

        def read() -> list[ModelVersion]:
            found = self._api.model_versions(model, VERSIONS).get("model_versions", [])
            return [model_version(version) for version in found]

        return self._cache.get(("versions", model), FRESH_S, read)

    @contextmanager
    def report(self, run: PipelineRun) -> Iterator[httpx.Response | None]:
        """A run's report as HTML, its body still to be read; None where it has none."""
        if run.report is None:
            yield None
            return
        with self._api.artifact(*run.report) as response:
            yield response

    # --- inside ----------------------------------------------------------------

    @property
    def _api(self) -> MlflowApi:
        return self._cache.get("api", float("inf"), self._connect)

    def _search(self, filter_string: str, count: int, page_token: str | None = None) -> FoundRuns:
        experiments = self._cache.get("experiments", FRESH_S, self._experiments)
        if not experiments:
            return FoundRuns([], None)
        answer = self._api.search_runs(experiments, filter_string, count, page_token)
        runs = [run for found in answer.get("runs", []) if (run := pipeline_run(found))]
        runs.sort(key=_started_ms, reverse=True)  # MLflow orders by when their records were made
        return FoundRuns(runs, answer.get("next_page_token") or None)

    def _experiments(self) -> list[str]:
        return [
            experiment["experiment_id"]
            for page in _pages(self._api.search_experiments)
            for experiment in page.get("experiments", [])
        ]

    def _start_reading_older(self, page_token: str) -> None:
        if self._older_reading.acquire(blocking=False):
            threading.Thread(
                target=self._read_older, args=(page_token,), name="safemerge-page", daemon=True
            ).start()

    def _read_older(self, next_token: str) -> None:
        page_token: str | None = next_token
        older: list[PipelineRun] = []
        try:
            while page_token is not None and NEWEST + len(older) < MOST:
                runs, page_token = self._search(_filter(), BATCH, page_token)
                older += runs
            self._older = tuple(older)
            self._older_since_s = time.monotonic()
        except MlflowUnavailableError as error:
            logger.warning("older runs could not be read: %s", error)
        finally:
            self._older_reading.release()


class FoundRuns(NamedTuple):
    """Runs that a search found, and where it goes on; None where it found all."""

    runs: list[PipelineRun]
    page_token: str | None


class Kept(NamedTuple):
    """An answer or a failure, and until when it is given again."""

    answer: object
    until_s: float


class Cache:
    """Answers kept for some seconds. Whoever asks meanwhile for what is being fetched waits for it."""

    def __init__(self) -> None:
        self._answers: dict[object, Kept] = {}
        self._locks: dict[object, threading.Lock] = {}

    def get(self, key: object, fresh_s: float, fetch: Callable[[], Answer]) -> Answer:
        """The answer; a failure is kept too, so that a server that is away is not asked by everyone.

        Raises:
            MlflowUnavailableError: as ``fetch`` raised it.
        """
        with self._locks.setdefault(key, threading.Lock()):
            kept = self._answers.get(key)
            if kept is None or time.monotonic() > kept.until_s:
                self._forget_old()
                try:
                    kept = Kept(fetch(), time.monotonic() + fresh_s)
                except MlflowUnavailableError as error:
                    kept = Kept(error, time.monotonic() + FAILED_S)
                self._answers[key] = kept
        if isinstance(kept.answer, MlflowUnavailableError):
            raise kept.answer
        return cast("Answer", kept.answer)

    def _forget_old(self) -> None:
        """Answers about single runs and pipelines do not pile up."""
        if len(self._answers) > 500:
            for key, kept in list(self._answers.items()):
                if time.monotonic() > kept.until_s:
                    self._answers.pop(key, None)
                    self._locks.pop(key, None)


def _pages(ask: Callable[[str | None], Json]) -> Iterator[Json]:
    """Everything that is found, a page after the other."""
    page_token: str | None = None
    while True:
        page = ask(page_token)
        yield page
        page_token = page.get("next_page_token") or None
        if page_token is None:
            return


def _started_ms(run: PipelineRun) -> int:
    return run.started_ms


def _filter(pipeline: str | None = None) -> str:
    asked = f"tags.`{tags.KIND}` = 'pipeline'"
    return asked if pipeline is None else f"{asked} and tags.`{tags.PIPELINE}` = '{pipeline}'"
