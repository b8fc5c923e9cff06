"""Pipeline runs and steps as MLflow runs, found again rather than doubled.

Never computes anything about models: it records, finds and fetches.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from safemerge.config.pipeline import PipelineConfig
from safemerge.described import Record
from safemerge.errors import MismatchError, MissingDependencyError, OutputExistsError, TrackingError
from safemerge.records import Approval, ArtifactRef, StepResult, Verdict, json_digest
from safemerge.reports.release import RELEASE_PAGE_FILE
from safemerge.storage.atomic import atomic_folder
from safemerge.tracking import tags
from safemerge.tracking.champions import Champions
from safemerge.tracking.step_run import StepRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

CONFIG_FILE = "pipeline.json"
PLAN_FILE = "plan.json"
REPORT_FOLDER = "report"
"""Artifact folder of a release report."""


class PipelinePlan(Record):
    """What a pipeline run was opened with; every step reads it from MLflow."""

    pipeline: str
    inputs_digest: str
    """sha256 of everything that the run's outcome depends on, but for the champion of the day."""
    model_digests: dict[str, str]
    """aligned_model and unaligned_model to the sha256 of their files."""
    data_digests: dict[str, str]
    """``task_training``, ``safety_training`` and ``suite <name>`` to the sha256 of their rows; with a tuning
    ``tuning suite <name>``, too, and ``tuning task of round <number>`` to that of the task."""
    task_digest: str
    """sha256 of the utility task: its config, code and documents."""
    promote: bool = True
    """Whether an adapter that passes becomes the champion."""
    adapter: ArtifactRef | None = None
    """An adapter to evaluate and gate again instead of training one."""
    fine_tuned_adapter: ArtifactRef | None = None
    """The unrepaired adapter that ``adapter`` came from, where it is known."""


class PipelineRun(Record):
    """An open pipeline run: its MLflow run, its config and its plan."""

    run_id: str
    experiment_id: str
    config: PipelineConfig
    plan: PipelinePlan
    opened_at_ms: int
    """Milliseconds since 1970; the later of two runs wins where both release an adapter."""


class Ledger:
    """Records and finds pipeline runs, steps and artifacts in one MLflow server.

    Args:
        tracking_uri: MLflow's address, which becomes the process's; None takes
            ``MLFLOW_TRACKING_URI``, as MLflow does.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        # MLflow logs at INFO to stderr, which schedulers show as errors.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        try:
            import mlflow
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingDependencyError("mlflow", "tracking") from error
        if tracking_uri is not None:
            # Some of the client's calls go through MLflow's global address.
            mlflow.set_tracking_uri(tracking_uri)
        self.client: MlflowClient = MlflowClient(tracking_uri)
        self.tracking_uri: str = self.client.tracking_uri
        self.champions = Champions(self.client)

    # --- pipeline runs -------------------------------------------------------

    def open_pipeline_run(self, config: PipelineConfig, plan: PipelinePlan, run_key: str) -> PipelineRun:
        """Find the pipeline run of this key, or adopt an unfinished one of the same inputs, or make one.

        A scheduler may lose its own run and start another (``airflow dags test`` deletes
        and recreates it under a new id), so a run without a verdict whose inputs are the
        same is taken over: the work goes on where it stopped, as work of the new run.
        """
        experiment_id = self._experiment(config.tracking.experiment)
        alike = f"tags.`{tags.KIND}` = 'pipeline' and tags.`{tags.INPUTS_DIGEST}` = '{plan.inputs_digest}'"
        found = self._newest(experiment_id, f"{alike} and tags.`{tags.RUN_KEY}` = '{run_key}'")
        now_ms = time.time_ns() // 1_000_000
        opened_at_ms = _opened_at_ms(found) if found else now_ms
        if found is None:
            runs = self._newest_first(experiment_id, alike)
            # A run whose record another took over is no newer for being started again.
            opened = (run.data.tags.get(_opened_as(run_key)) for run in runs)
            opened_at_ms = next((int(at_ms) for at_ms in opened if at_ms), now_ms)
            found = next((run for run in runs if tags.VERDICT not in run.data.tags), None)
            if found is not None:
                former = _opened_as(found.data.tags.get(tags.RUN_KEY, ""))
                self.client.set_tag(found.info.run_id, former, str(_opened_at_ms(found)))
        if found is None:
            found = self.client.create_run(
                experiment_id,
                run_name=f"{config.name} {run_key.rpartition('/')[2]}",
                tags={
                    tags.KIND: "pipeline",
                    tags.PIPELINE: config.name,
                    tags.RUN_KEY: run_key,
                    tags.INPUTS_DIGEST: plan.inputs_digest,
                    tags.REGISTERED_MODEL: config.tracking.registered_model,
                },
            )
            logger.info("opened MLflow run %s for %s", found.info.run_id, run_key)
        else:
            logger.info("going on with MLflow run %s for %s", found.info.run_id, run_key)
        run_id = found.info.run_id
        try:
            self.client.set_tag(run_id, tags.RUN_KEY, run_key)
            self.client.set_tag(run_id, tags.OPENED, str(opened_at_ms))
            self.client.set_tag(run_id, tags.STARTED, str(now_ms))
            self.client.log_text(run_id, config.model_dump_json(indent=2), CONFIG_FILE)
            self.client.log_text(run_id, plan.to_json(), PLAN_FILE)
            self.client.update_run(run_id, status="RUNNING")
        except BaseException:
            if tags.VERDICT not in found.data.tags:  # nobody else would end it: no task knows its id
                self.client.set_terminated(run_id, "FAILED")
            raise
        return PipelineRun(
            run_id=run_id, experiment_id=experiment_id, config=config, plan=plan, opened_at_ms=opened_at_ms
        )

    def pipeline_run(self, run_id: str) -> PipelineRun:
        """Read an open pipeline run back, from any machine.

        Raises:
            TrackingError: there is no such run, or it was not opened by safemerge.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
            config = PipelineConfig.model_validate_json(self._text(run_id, CONFIG_FILE))
            plan = PipelinePlan.model_validate_json(self._text(run_id, PLAN_FILE))
        except (MlflowException, OSError, ValidationError) as error:
            raise TrackingError(
                f"MLflow run {run_id} at {self.tracking_uri}: expected an open pipeline run, got: {error}"
            ) from error
        return PipelineRun(
            run_id=run_id,
            experiment_id=run.info.experiment_id,
            config=config,
            plan=plan,
            opened_at_ms=_opened_at_ms(run),
        )

    def close_pipeline_run(self, run: PipelineRun, verdict: Verdict, summary: str, gate_run_id: str) -> None:
        """Write the verdict on the pipeline run and end it."""
        self.client.set_tag(run.run_id, tags.VERDICT_SUMMARY, tags.fitting(summary))
        self.client.set_tag(run.run_id, tags.GATE_RUN, gate_run_id)
        self.client.set_tag(run.run_id, tags.VERDICT, verdict)
        self.client.set_terminated(run.run_id, "FINISHED")

    def link_report(self, run: PipelineRun, gate: StepResult) -> None:
        """Name the gate's release report on the pipeline run, and link it from the run's description."""
        ref = gate.outputs.get("report")
        if ref is not None:
            self._link_report(run, ref.folder)

    def keep_signed_report(self, run: PipelineRun, folder: Path) -> None:
        """Store the release report that names who signed on the pipeline run itself, and link that one."""
        self.client.log_artifacts(run.run_id, str(folder), REPORT_FOLDER)
        self._link_report(run, f"runs:/{run.run_id}/{REPORT_FOLDER}")

    def _link_report(self, run: PipelineRun, folder: str) -> None:
        self.client.set_tag(run.run_id, tags.REPORT, f"{folder}/{RELEASE_PAGE_FILE}")
        note = f"[Release report]({self.report_page(run)})"
        self.client.set_tag(run.run_id, "mlflow.note.content", note)

    def report_page(self, run: PipelineRun) -> str | None:
        """Where MLflow's pages show the run's release report, from ``#`` on; None where there is none."""
        uri = self.client.get_run(run.run_id).data.tags.get(tags.REPORT)
        if uri is None:
            return None
        run_id, _, path = uri.removeprefix("runs:/").partition("/")
        return f"#/experiments/{run.experiment_id}/runs/{run_id}/artifacts/{path}"

    def note_sign_off(self, run: PipelineRun, state: str, answer: Approval | None = None) -> None:
        """Write on the pipeline run what became of asking a person."""
        notes = {tags.SIGN_OFF: state}
        if answer is not None:
            notes |= {tags.SIGN_OFF_AT: answer.at, tags.SIGN_OFF_REASON: answer.reason}
            notes |= {tags.SIGN_OFF_BY: answer.by} if answer.by else {}
        for key, text in notes.items():
            self.client.set_tag(run.run_id, key, tags.fitting(text))

    def leave_unanswered(self, run: PipelineRun) -> None:
        """Say of a run that ends that nobody answered, where a person was asked and none did."""
        if self.client.get_run(run.run_id).data.tags.get(tags.SIGN_OFF) == "waiting":
            self.note_sign_off(run, "unanswered")

    def note_on_pipeline_run(self, run: PipelineRun, tag: str, text: str) -> None:
        """Set a tag on the pipeline run, for those who look at lists of runs."""
        self.client.set_tag(run.run_id, tag, text)

    def find_pipeline_run(self, experiment: str, run_key: str) -> str | None:
        """MLflow's id of the pipeline run that the scheduler calls so; None where there is none."""
        found = self._newest(
            self._experiment(experiment),
            f"tags.`{tags.KIND}` = 'pipeline' and tags.`{tags.RUN_KEY}` = '{run_key}'",
        )
        return found.info.run_id if found else None

    def find_promotion(self, experiment: str, inputs_digest: str) -> tuple[str, StepResult] | None:
        """The newest pipeline run of these inputs that released an adapter: its id, and its promotion."""
        not_blocked = self._newest_first(
            self._experiment(experiment),
            f"tags.`{tags.KIND}` = 'pipeline' and tags.`{tags.INPUTS_DIGEST}` = '{inputs_digest}'"
            f" and tags.`{tags.VERDICT}` != '{Verdict.BLOCK}'",
        )
        for run in not_blocked:
            promotion = self.results(run.info.run_id).get("promote")
            if promotion is not None:
                return run.info.run_id, promotion
        return None

    def abandon_pipeline_run(self, run: PipelineRun) -> bool:
        """End a run without a verdict as failed, and what it left running; False where it has one."""
        if tags.VERDICT in self.client.get_run(run.run_id).data.tags:
            return False
        left = self.client.search_runs(
            [run.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run.run_id}' and attributes.status = 'RUNNING'",
        )
        for run_id in (*(child.info.run_id for child in left), run.run_id):
            self.client.set_terminated(run_id, "FAILED")
        return True

    # --- steps ---------------------------------------------------------------

    def find_done(
        self, run: PipelineRun, step: str, inputs_digest: str, label: str | None = None
    ) -> StepResult | None:
        """The result of a finished step with the same inputs, of this pipeline run or an earlier one.

        A step whose artifacts are gone from the store does not count as done. Work that was
        done elsewhere is noted on this pipeline run under ``label`` (default: the step's name).
        """
        label = label or step
        same_inputs = f"tags.`{tags.INPUTS_DIGEST}` = '{inputs_digest}'"
        for done, result in self._finished_steps(run.experiment_id, step, same_inputs):
            if all(self._exists(ref) for ref in result.outputs.values()):
                here = done.data.tags.get("mlflow.parentRunId") == run.run_id
                if not here or done.data.tags.get(tags.LABEL) != label:
                    self.client.set_tag(run.run_id, tags.REUSED + label, done.info.run_id)
                return result.model_copy(update={"reused": True})
        return None

    def find_output(self, experiment: str, step: str, output: str, digest: str) -> ArtifactRef | None:
        """The newest output of this name and digest that a step of this kind has written."""
        for _, result in self._finished_steps(self._experiment(experiment), step):
            ref = result.outputs.get(output)
            if ref is not None and ref.digest == digest and self._exists(ref):
                return ref
        return None

    def find_evaluations(self, experiment_id: str, adapter_digest: str) -> Iterator[ArtifactRef]:
        """Reports of an adapter that evaluations have written, the newest first."""
        of_adapter = f"tags.`{tags.ADAPTER_DIGEST}` = '{adapter_digest}'"
        for _, result in self._finished_steps(experiment_id, "evaluate", of_adapter):
            ref = result.outputs.get("report")
            if ref is not None and self._exists(ref):
                yield ref

    @contextmanager
    def step_run(
        self, run: PipelineRun, step: str, inputs_digest: str, label: str | None = None
    ) -> Iterator[StepRun]:
        """The child run of a step: the one that a killed attempt left, or a new one.

        It ends FAILED when the block raises, and FINISHED once :meth:`StepRun.finish` was called.
        """
        label = label or step
        left = self._newest(
            run.experiment_id,
            f"tags.`mlflow.parentRunId` = '{run.run_id}' and tags.`{tags.LABEL}` = '{label}'"
            f" and tags.`{tags.INPUTS_DIGEST}` = '{inputs_digest}'",
        )
        if left is None:
            left = self.client.create_run(
                run.experiment_id,
                run_name=label.replace("_", " "),
                tags={
                    "mlflow.parentRunId": run.run_id,
                    tags.KIND: "step",
                    tags.PIPELINE: run.config.name,
                    tags.STEP: step,
                    tags.LABEL: label,
                    tags.INPUTS_DIGEST: inputs_digest,
                },
            )
        else:
            self.client.update_run(left.info.run_id, status="RUNNING")
        step_run = StepRun(self.client, left.info.run_id, step, inputs_digest)
        try:
            yield step_run
        except BaseException:
            self.client.set_terminated(left.info.run_id, "FAILED")
            raise

    def results(self, run_id: str) -> dict[str, StepResult]:
        """Every finished step of a pipeline run by its label, those reused from earlier runs included."""
        parent = self.client.get_run(run_id)
        children = self.client.search_runs(
            [parent.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{run_id}'",
            order_by=["attributes.start_time"],
        )
        runs = {child.data.tags[tags.LABEL]: child for child in children if tags.LABEL in child.data.tags}
        for tag, reused_id in parent.data.tags.items():
            if tag.startswith(tags.REUSED):
                runs[tag.removeprefix(tags.REUSED)] = self.client.get_run(reused_id)
        results = {label: _result(child) for label, child in runs.items()}
        return {label: result for label, result in results.items() if result is not None}

    # --- artifacts -------------------------------------------------------------

    def fetch(self, uri: str, cache: Path) -> Path:
        """A local copy of an artifact folder or file.

        Args:
            uri: a local path, ``runs:/…``, ``models:/…`` or another artifact URI.
            cache: folder for the copies; one per ``runs:/`` or versioned ``models:/`` URI is kept.

        Raises:
            TrackingError: nothing is there.
        """
        import hashlib

        import mlflow.artifacts
        from mlflow.exceptions import MlflowException

        if ":/" not in uri:
            return Path(uri)
        uri = self.pin(uri)
        target = cache / hashlib.sha256(f"{self.tracking_uri} {uri}".encode()).hexdigest()[:24]
        if not target.exists():
            try:
                with atomic_folder(target) as partial:
                    got = mlflow.artifacts.download_artifacts(
                        artifact_uri=uri, dst_path=str(partial), tracking_uri=self.tracking_uri
                    )
                    name = Path(got).relative_to(partial).as_posix()
                    (partial / "name").write_text(name, encoding="utf-8")
            except OutputExistsError:
                logger.debug("another process fetched %s in the meantime", uri)
            except (MlflowException, OSError) as error:
                raise TrackingError(f"{uri} at {self.tracking_uri}: could not be fetched: {error}") from error
        target.touch()
        return target / (target / "name").read_text(encoding="utf-8")

    def fetch_checked(self, ref: ArtifactRef, cache: Path, digest_of: Callable[[Path], str]) -> Path:
        """A local copy of an artifact, its content checked by digest; a damaged copy is fetched anew.

        Raises:
            MismatchError: the stored artifact itself is not what was written.
            TrackingError: nothing is there.
        """
        got = ""
        for _ in range(2):
            path = self.fetch(ref.uri, cache)
            got = digest_of(path)
            if got == ref.digest:
                return path
            if path.is_relative_to(cache):
                shutil.rmtree(cache / path.relative_to(cache).parts[0], ignore_errors=True)
        raise MismatchError(f"{ref.uri}: expected content of digest {ref.digest[:12]}, got {got[:12]}")

    def pin(self, uri: str) -> str:
        """A ``models:/`` URI with its alias replaced by the version it points to now."""
        from mlflow.exceptions import MlflowException

        if not uri.startswith("models:/"):
            return uri
        if "@" not in uri:
            if not uri.rpartition("/")[2].isdigit() and not uri.startswith("models:/m-"):
                raise TrackingError(f"{uri}: expected models:/<name>/<version> or models:/<name>@<alias>")
            return uri
        name, _, alias = uri.removeprefix("models:/").rpartition("@")
        try:
            version = self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            raise TrackingError(
                f"{uri} at {self.tracking_uri}: expected a model version, got: {error}"
            ) from error
        return f"models:/{name}/{version.version}"

    # --- inside ----------------------------------------------------------------

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return str(self.client.create_experiment(name, artifact_location=self._artifact_location()))
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} at {self.tracking_uri}: expected it active, got deleted"
            )
        return str(experiment.experiment_id)

    def _artifact_location(self) -> str | None:
        """Beside the SQLite file where there is no server: MLflow's default is the working directory."""
        if not self.tracking_uri.startswith("sqlite:///"):
            return None
        return (Path(self.tracking_uri.removeprefix("sqlite:///")).resolve().parent / "artifacts").as_uri()

    def _newest(self, experiment_id: str, filter_string: str) -> Run | None:
        return next(iter(self._newest_first(experiment_id, filter_string, 1)), None)

    def _newest_first(self, experiment_id: str, filter_string: str, most: int = 1000) -> list[Run]:
        return list(
            self.client.search_runs(
                [experiment_id], filter_string, max_results=most, order_by=["attributes.start_time DESC"]
            )
        )

    def _finished_steps(
        self, experiment_id: str, step: str, *conditions: str
    ) -> Iterator[tuple[Run, StepResult]]:
        """Runs of a kind of step that ended well, each with what it wrote, the newest first."""
        wanted = (f"tags.`{tags.STEP}` = '{step}'", "attributes.status = 'FINISHED'", *conditions)
        for run in self._newest_first(experiment_id, " and ".join(wanted)):
            if (result := _result(run)) is not None:
                yield run, result

    def _exists(self, ref: ArtifactRef) -> bool:
        if not ref.uri.startswith("runs:/"):
            return ":/" in ref.uri or Path(ref.uri).exists()
        run_id, _, path = ref.uri.removeprefix("runs:/").partition("/")
        folder, _, name = path.rpartition("/")
        return any(
            Path(info.path).name == name for info in self.client.list_artifacts(run_id, folder or None)
        )

    def _text(self, run_id: str, path: str) -> str:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            got = self.client.download_artifacts(run_id, path, folder)
            return Path(got).read_text(encoding="utf-8")


def _opened_at_ms(run: Run) -> int:
    """When a pipeline run was opened; when it was made, where an earlier release of safemerge did that."""
    return int(run.data.tags.get(tags.OPENED) or run.info.start_time)


def _opened_as(run_key: str) -> str:
    """Name of the tag that keeps when a run of a key was opened whose record has another key now."""
    return tags.OPENED_AS + json_digest(run_key)[:16]


def _result(run: Run) -> StepResult | None:
    """What a finished step wrote; None where it did not finish, or wrote it in another format."""
    try:
        return StepResult.model_validate_json(run.data.tags[tags.RESULT])
    except (KeyError, ValidationError):
        return None
