"""Operators that each run one step of the safemerge pipeline in a process of its own.

They decide nothing about models: they hand URIs and digests from step to step, and turn a
step's outcome into a task's. A step that is already done in MLflow is not repeated; it
answers with the outputs it had, and the log says so.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import Asset, BaseOperator, BaseOperatorLink, conf
from airflow.sdk.exceptions import AirflowSkipException

from safemerge.config.people import Event
from safemerge.config.recipes import NewData
from safemerge.records import StepResult
from safemerge_airflow.assets import data_overrides, promotion_event
from safemerge_airflow.connections import step_environment
from safemerge_airflow.device_lane import device_lane
from safemerge_airflow.messages import Notifications, NotReleasedError, tell
from safemerge_airflow.mlflow_link import MlflowRunLink, ReportLink, mlflow_run_url
from safemerge_airflow.step_process import StepProcess

Artifact = Mapping[str, str]
"""``uri`` and ``digest`` of what a step made; in a DAG, another operator's ``output[name]``."""


class SafemergeStepOperator(BaseOperator):
    """Runs one step and pushes each of its outputs as an XCom of that name.

    Args:
        run_id: MLflow run of the pipeline run, which :class:`OpenRunOperator` pushes.
        kwargs: as every operator takes them.
    """

    step: ClassVar[str]
    """Name of the step, as ``safemerge step`` knows it."""
    step_inputs: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold artifacts of other steps; None where there is none."""
    step_options: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold plain values."""

    operator_extra_links: tuple[BaseOperatorLink, ...] = (MlflowRunLink(),)
    ui_color = "#e8f1ec"

    def __init__(self, *, run_id: str | None, **kwargs: Any) -> None:
        # Each output is its own XCom key; one that a skipped task never pushed reads as None.
        super().__init__(**{"multiple_outputs": True} | kwargs)
        self.run_id = run_id
        self.mlflow_run_id: str | None = None
        """The run to show: the step's own once there is one."""
        self._process: StepProcess | None = None

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Run the step.

        Returns:
            The outputs by name, each ``{"uri", "digest"}``, and ``run_id`` of the step's MLflow run.

        Raises:
            AirflowSkipException: the step has nothing to do in this run.
            AirflowFailException: the step failed in a way that a retry does not mend.
            AirflowException: the step failed otherwise.
        """
        return self.xcoms(self.run_step(context))

    def run_step(self, context: Mapping[str, Any]) -> StepResult:
        """Run the step and log what came of it."""
        self.mlflow_run_id = self.run_id
        if self.run_id:  # the link while the step runs; Airflow asks for it again at the end
            context["ti"].xcom_push(MlflowRunLink().xcom_key, mlflow_run_url(self.run_id))
        request = self.request()
        self.log.info("%s", shlex.join(["safemerge", "step", self.step, json.dumps(request)]))
        self._process = StepProcess(self.command(), self.log, step_environment())
        try:
            result = self._process.run(self.step, request)
        finally:
            self._process = None
        self.mlflow_run_id = result.run_id
        if not result.outputs and "note" in result.figures:
            raise AirflowSkipException(str(result.figures["note"]))
        if result.reused and "note" not in result.figures:
            self.log.info("already done in MLflow run %s, nothing repeated", result.run_id)
        for name, figure in result.figures.items():
            self.log.info("%s: %s", name, figure)
        return result

    def request(self) -> dict[str, Any]:
        """What the step is asked."""
        return {"run_id": self.run_id, "inputs": self.inputs(), "options": self.options()}

    def inputs(self) -> dict[str, Any]:
        """The step's inputs; those that are None are left out."""
        return self._given(self.step_inputs)

    def options(self) -> dict[str, Any]:
        """The step's options; those that are None are left out."""
        return self._given(self.step_options)

    def command(self) -> tuple[str, ...]:
        """How to call safemerge on this worker."""
        return (conf.get("safemerge", "python", fallback=sys.executable), "-m", "safemerge")

    def xcoms(self, result: StepResult) -> dict[str, Any]:
        """What later tasks read."""
        outputs = {name: ref.model_dump() for name, ref in result.outputs.items()}
        return {"run_id": result.run_id, **outputs}

    def on_kill(self) -> None:
        """End the step's whole process group."""
        if self._process is not None:
            self._process.kill()

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class DeviceStepOperator(SafemergeStepOperator):
    """A step that uses an accelerator: it asks for the deployment's ``gpu`` lane, where there is one."""

    ui_color = "#cfe3d8"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**(device_lane() | kwargs))


class OpenRunOperator(SafemergeStepOperator):
    """Finds or makes the MLflow run of this pipeline run, after checking all that the steps need.

    Args:
        config: path of the pipeline's YAML file, as the worker sees it.
        overrides: dotted config keys to values, such as ``{"merge.quantile": 0.5}``; None keeps the file's.
        adapter: URI of an adapter to evaluate and gate again, instead of training one.
        fine_tuned_adapter: URI of the unrepaired adapter that ``adapter`` came from.
        promote: whether an adapter that passes becomes the champion.
        force: False skips a run whose inputs are those that the champion came of.
        data: data sets whose versions events announce; their assets are inlets of the task.
        versions: asset to the version to take, whatever was announced; None takes what was.
        run_key: name of the pipeline run that stays the same when it is started again;
            DAG id and run id where None.
    """

    step = "open"
    step_options = ("config", "run_key", "adapter", "fine_tuned_adapter", "promote", "force")
    template_fields = (*step_options, "overrides", "versions")

    def __init__(
        self,
        *,
        config: str,
        overrides: Mapping[str, Any] | None = None,
        adapter: str | None = None,
        fine_tuned_adapter: str | None = None,
        promote: bool = True,
        force: bool = True,
        data: Sequence[NewData] = (),
        versions: Mapping[str, str | None] | None = None,
        run_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(run_id=None, **kwargs)
        self.config = config
        self.overrides = overrides
        self.adapter = adapter
        self.fine_tuned_adapter = fine_tuned_adapter
        self.promote = promote
        self.force = force
        self.data = data
        self.versions = versions
        self.run_key = run_key

    def options(self) -> dict[str, Any]:
        """The step's options, with the overrides that were set."""
        overrides = {key: value for key, value in (self.overrides or {}).items() if value is not None}
        return super().options() | {"overrides": overrides}

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Open the run; pushes ``run_id``, its id in MLflow, and whether it has tuning and learning."""
        self.run_key = self.run_key or f"{context['dag_run'].dag_id}/{context['dag_run'].run_id}"
        new_data = data_overrides(self.data, self.versions or {}, context)
        for key, value in new_data.items():
            self.log.info("%s: %s, as was announced or asked for", key, value)
        self.overrides = {**(self.overrides or {}), **new_data}
        return super().execute(context)

    def xcoms(self, result: StepResult) -> dict[str, Any]:
        """With them, what ``tune.branch`` lets tasks run by."""
        return super().xcoms(result) | {name: result.figures.get(name) for name in ("tuning", "learning")}


class TrainAdapterOperator(DeviceStepOperator):
    """Fine-tunes one LoRA adapter; pushes ``adapter``.

    Args:
        role: ``task`` or ``safety``.
    """

    step = "train"
    step_options = ("role",)
    template_fields = ("run_id", "role")

    def __init__(self, *, role: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.role = role


class SafeMergeOperator(DeviceStepOperator):
    """Merges the safety adapter into the layers that left the safe subspace.

    Pushes ``safemerge`` and the controls ``scale`` and ``scale_selected``.

    Args:
        task_adapter: the adapter to repair.
        safety_adapter: the adapter that carries safety.
        choice: the merge that was chosen; None merges as configured.
        coefficients: the file of those that were chosen; None where others were.
    """

    step = "merge"
    step_inputs = ("task_adapter", "safety_adapter", "choice", "coefficients")
    template_fields = ("run_id", *step_inputs)

    def __init__(
        self,
        *,
        task_adapter: Artifact | None,
        safety_adapter: Artifact | None,
        choice: Artifact | None = None,
        coefficients: Artifact | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.task_adapter = task_adapter
        self.safety_adapter = safety_adapter
        self.choice = choice
        self.coefficients = coefficients


class EvaluateOperator(DeviceStepOperator):
    """Measures utility, harmfulness and over-refusal of one arm; pushes ``report``.

    Args:
        arm: ``aligned``, ``fine_tuned``, ``safemerge``, ``scale`` or ``scale_selected``.
        adapter: the arm's adapter; None for the aligned model itself.
    """

    step = "evaluate"
    step_inputs = ("adapter",)
    step_options = ("arm",)
    template_fields = ("run_id", "arm", "adapter")

    def __init__(self, *, arm: str, adapter: Artifact | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arm = arm
        self.adapter = adapter


class GateOperator(SafemergeStepOperator):
    """Judges the candidate by the pipeline's policy; pushes ``decision`` and fails where it is blocked.

    Pushes ``ask`` as well: whether a person decides what follows.

    Args:
        candidate: evaluation of the adapter that is to be released.
        aligned: evaluation of the aligned model.
        fine_tuned: evaluation of the unrepaired adapter.
        adapter: the adapter that the candidate's evaluation is about.
        notifications: whom to tell of the verdict.
    """

    step = "gate"
    operator_extra_links = (MlflowRunLink(), ReportLink())
    step_inputs = ("candidate", "aligned", "fine_tuned", "adapter")
    template_fields = ("run_id", "candidate", "aligned", "fine_tuned", "adapter")
    ui_color = "#f3e3c8"

    def __init__(
        self,
        *,
        candidate: Artifact | None,
        aligned: Artifact | None,
        fine_tuned: Artifact | None,
        adapter: Artifact | None,
        notifications: Notifications = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.candidate = candidate
        self.aligned = aligned
        self.fine_tuned = fine_tuned
        self.adapter = adapter
        self.notifications = notifications

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Judge; everything is recorded before the task fails.

        Raises:
            NotReleasedError: the verdict, unless it is a pass or a person decides.
        """
        result = self.run_step(context)
        xcoms = self.xcoms(result)
        verdict = str(result.figures.get("verdict", ""))
        if verdict in set(Event):
            tell(self, Event(verdict), context, result)
        if result.figures.get("passed") is not True and not xcoms["ask"]:
            for key, value in xcoms.items():
                context["ti"].xcom_push(key, value)
            raise NotReleasedError(str(result.figures.get("summary", "the gate gave no verdict")))
        return xcoms

    def xcoms(self, result: StepResult) -> dict[str, Any]:
        """What later tasks read."""
        return super().xcoms(result) | {"ask": result.figures.get("ask") is True}


class PromoteOperator(SafemergeStepOperator):
    """Makes the adapter a model version with the alias ``champion``; pushes ``model_version``.

    Args:
        adapter: the adapter that passed.
        decision: the gate's decision on it.
        answer: what a person said about it; None where nobody was asked.
        champion: asset to tell of the new champion, which becomes an outlet of the task.
        notifications: whom to tell of the new champion, or of a person's refusal.
    """

    step = "promote"
    operator_extra_links = (MlflowRunLink(), ReportLink())
    step_inputs = ("adapter", "decision")
    step_options = ("answer",)
    template_fields = ("run_id", "adapter", "decision", "answer")

    def __init__(
        self,
        *,
        adapter: Artifact | None,
        decision: Artifact | None,
        answer: Mapping[str, Any] | None = None,
        champion: Asset | None = None,
        notifications: Notifications = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(outlets=[champion] if champion else None, **kwargs)
        self.adapter = adapter
        self.decision = decision
        self.answer = answer
        self.champion = champion
        self.notifications = notifications

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Promote, and let the champion's event say what was promoted.

        Raises:
            NotReleasedError: a person's answer does not let the adapter through.
        """
        result = self.run_step(context)
        if "refused" in result.figures:
            tell(self, Event.REJECTED, context, result)
            raise NotReleasedError(str(result.figures["refused"]))
        tell(self, Event.PROMOTED, context, result)
        if self.champion is not None:
            context["outlet_events"][self.champion].extra = promotion_event(result, self.run_id)
        return self.xcoms(result)


class CloseRunOperator(SafemergeStepOperator):
    """Marks a pipeline run that reached no verdict as failed in MLflow; a teardown for the whole DAG."""

    step = "close"
    template_fields = ("run_id",)

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Close the run, if one was opened."""
        if self.run_id is None:
            raise AirflowSkipException("no pipeline run was opened, so there is none to close")
        return super().execute(context)
