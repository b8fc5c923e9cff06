"""Typed configuration of a pipeline: what a user may set, its unit and its bounds.

Models are frozen and refuse unknown keys. They hold values only: reading files is
:mod:`safemerge.config.load`. ``core`` and ``gate`` never see one.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Self

from pydantic import Field, model_validator

from safemerge.config.base import Config, PlainName
from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.merge import MergeConfig
from safemerge.config.places import ModelPlace
from safemerge.config.training import TrainingConfig
from safemerge.config.tuning import TuningConfig
from safemerge.errors import ConfigError
from safemerge.gate import GatePolicy, check_stoppable
from safemerge.records import SuiteKind

TrackedName = Annotated[str, Field(pattern=r"^[^\s/:'\"`][^\n/:'\"`]*$")]
"""A name that MLflow's addresses and filters can hold: no slash, colon or quote, and not empty."""


class TrackingConfig(Config):
    """Where MLflow keeps the record. The server's address is ``MLFLOW_TRACKING_URI``."""

    experiment: TrackedName = "safemerge"
    registered_model: TrackedName
    """Name in the Model Registry; its alias ``champion`` is what deployments serve."""


class RetentionConfig(Config):
    """What is pruned on the machine that ran the steps. MLflow's records are never touched."""

    checkpoints_days: Annotated[float, Field(ge=0)] = 3
    """Training checkpoints untouched for so many days are deleted; those of finished steps at once."""
    cache_days: Annotated[float, Field(ge=0)] = 14
    """Downloaded artifacts unused for so many days are deleted."""


class PipelineConfig(Config):
    """One retraining pipeline."""

    name: PlainName
    aligned_model: ModelPlace
    """Folder or hub id (``name@revision``) of the model that was made safe and is fine-tuned here."""
    unaligned_model: ModelPlace
    """Folder or hub id of its counterpart before alignment; same architecture."""
    task_training: TrainingConfig
    safety_training: TrainingConfig
    merge: MergeConfig = MergeConfig()
    evaluation: EvaluationConfig
    gate: GatePolicy
    tracking: TrackingConfig
    retention: RetentionConfig = RetentionConfig()
    tuning: TuningConfig | None = None
    """Choose the merge among candidates instead of taking ``merge`` as it stands."""

    def training_of(self, role: str) -> TrainingConfig:
        """How the adapter of a role, ``task`` or ``safety``, is trained."""
        return {"task": self.task_training, "safety": self.safety_training}[role]

    @model_validator(mode="after")
    def _final_split_is_unseen(self) -> Self:
        if self.tuning is None:
            return self
        ours, theirs = self.tuning.utility, self.evaluation.utility
        if (ours.task, ours.include_path) == (theirs.task, theirs.include_path):
            raise ValueError(
                f"expected tuning.utility to name another task than evaluation.utility, got {ours.task} "
                "in both: the final figures would be of documents that the choice has seen"
            )
        return self

    @model_validator(mode="after")
    def _gate_can_stop_early(self) -> Self:
        if self.evaluation.sequential:
            try:
                check_stoppable(self.gate)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _gate_can_pass(self) -> Self:
        limits = self.gate.max_over_refusal_rate
        suites = self.evaluation.suite_names(SuiteKind.OVER_REFUSAL)
        if not isinstance(limits, dict):
            if not suites:
                raise ValueError(
                    "expected a suite of kind over_refusal for gate.max_over_refusal_rate, got none: "
                    "the gate could never let an adapter pass"
                )
            return self
        for name in sorted(limits.keys() - set(suites)):
            near = difflib.get_close_matches(name, suites, n=1)
            hint = f"did you mean {near[0]}?" if near else f"got {', '.join(suites) or 'none'}"
            raise ValueError(
                f"expected gate.max_over_refusal_rate.{name} to name an over_refusal suite of evaluation; "
                f"{hint}"
            )
        return self
