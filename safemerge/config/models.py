"""Typed configuration of the pipeline: what a user may set, its unit and its bounds.

Models are frozen and refuse unknown keys. They hold values only: reading files is
:mod:`safemerge.config.load`. ``core`` and ``gate`` never see one.
"""

from __future__ import annotations

import difflib
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from safemerge.config.base import Config, PlainName
from safemerge.config.endpoints import EndpointConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.judges import (
    JUDGES_OF_REFUSALS,
    JUDGES_WITHOUT_MODEL,
    JudgeConfig,
    blind_to,
    loads_model,
)
from safemerge.config.suites import shipped_suite
from safemerge.config.values import Method, OnUndefined, Share, Weight
from safemerge.core import methods
from safemerge.core.options import INSTEAD_OF_COEFFICIENTS, LEARNED
from safemerge.errors import ConfigError
from safemerge.gate import GatePolicy, check_stoppable
from safemerge.gate.policy import Finite, Level, Limits, NotNegative, Rate
from safemerge.records import MAX_ERROR, SuiteKind

TrackedName = Annotated[str, Field(pattern=r"^[^\s/:'\"`][^\n/:'\"`]*$")]
"""A name that MLflow's addresses and filters can hold: no slash, colon or quote, and not empty."""


class MergeConfig(Config):
    """The merge of the task adapter with the safety adapter."""

    method: Method = methods.DEFAULT
    threshold: float | None = None
    """τ: layers with a cosine below it are merged. 0.35 where nothing else chooses."""
    quantile: Share | None = None
    """Merge this share of the layers, those with the lowest cosines."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Merge so many layers, those with the lowest cosines."""
    modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Merge these layers: module paths, or patterns with ``*``."""
    task_weight: Weight | None = None
    """α, weight of the task adapter in merged layers. The method's default where neither weight is given."""
    safety_weight: Weight | None = None
    """β, weight of the safety adapter in merged layers. Where not given 1 − α, or the method's default where
    its two weights are strengths of their own (resta, lox, lssf)."""
    on_undefined: OnUndefined = OnUndefined.KEEP
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of entries kept by methods that prune."""
    components: Annotated[int, Field(gt=0)] | None = None
    """Largest number of singular directions of V that methods which decompose it use."""
    coefficients: str | None = None
    """A file of ``safemerge learn`` (relative to the config file) with weights of every layer, in place of a
    choice of layers and of weights for all. The method is then ``learned``."""
    seed: int = 0
    """Seed of random draws."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """Store every update at this rank."""
    max_error: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Store at the smallest rank that keeps every layer's relative error at or below it."""

    @model_validator(mode="before")
    @classmethod
    def _coefficients_have_a_method(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("coefficients") is not None:
            return {"method": LEARNED, **data}
        return data

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        beside = [name for name in INSTEAD_OF_COEFFICIENTS if getattr(self, name) is not None]
        if self.coefficients is not None and beside:
            raise ValueError(
                "expected coefficients alone, as they choose and weigh every layer, "
                f"got {' and '.join(beside)} beside them"
            )
        for names in (("threshold", "quantile", "count", "modules"), ("rank", "max_error")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1:
                raise ValueError(f"expected one of {', '.join(names)}, got {' and '.join(given)}")
        return self


class DataSource(Config):
    """Prompt and response pairs: a JSON Lines file, or a hub data set."""

    path: str
    """A ``.jsonl`` file (relative to the config file) or a hub data-set id."""
    name: str | None = None
    """Configuration name of a hub data set."""
    split: str = "train"
    revision: str | None = None
    """Pinned revision of a hub data set."""
    prompt: str = "prompt"
    """Column with the request."""
    response: str = "response"
    """Column with the answer to learn."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use the first so many rows."""


class LoraSettings(Config):
    """Shape of the adapter to train."""

    r: Annotated[int, Field(gt=0)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Share = 0.0
    target_modules: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "v_proj")


class Quantization(StrEnum):
    """How the frozen base is held in memory during training."""

    NONE = "none"
    NF4 = "nf4"
    """4-bit (QLoRA); needs CUDA and bitsandbytes."""


class TrainingSettings(Config):
    """How one LoRA adapter is fine-tuned, whatever the data."""

    lora: LoraSettings = LoraSettings()
    steps: Annotated[int, Field(gt=0)]
    """Optimiser steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    batch_size: Annotated[int, Field(gt=0)] = 8
    """Examples a device and forward pass."""
    gradient_accumulation: Annotated[int, Field(gt=0)] = 1
    processes: Annotated[int, Field(gt=0)] = 1
    """Processes that train together, one a device; so many times larger is the effective batch."""
    max_length_tokens: Annotated[int, Field(gt=0)] = 1024
    warmup_share: Share = 0.1
    quantization: Quantization = Quantization.NONE
    gradient_checkpointing: bool | None = None
    """Compute activations again instead of keeping them. Where not given: on CUDA devices alone."""
    save_every_steps: Annotated[int, Field(gt=0)] = 50
    """Checkpoint interval; an interrupted training resumes from the last one."""
    seed: int = 0


class TrainingConfig(TrainingSettings):
    """Supervised fine-tuning of one LoRA adapter."""

    data: Annotated[tuple[DataSource, ...], Field(min_length=1)]


class UtilityConfig(Config):
    """Task utility, measured by lm-eval."""

    task: str
    """An lm-eval task name."""
    metric: str
    """One of the task's metrics, such as ``acc`` or ``exact_match``."""
    include_path: str | None = None
    """Folder with the user's own lm-eval tasks (relative to the config file)."""
    filter: str = "none"
    """lm-eval filter whose result counts, such as ``strict-match``."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use the first so many documents."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    apply_chat_template: bool = True


class SuiteConfig(Config):
    """A suite of prompts to answer and judge: a shipped one by name, or a file."""

    # A shipped suite brings its name and kind with it.
    model_config = ConfigDict(json_schema_extra={"required": []})

    suite: str | None = None
    """Name of a shipped suite, such as ``directharm4``."""
    path: str | None = None
    """A ``.jsonl`` file with ``id`` and ``prompt``, or a ``.yaml`` file that describes a suite
    (relative to the config file)."""
    name: PlainName
    """Name in reports and gate rules; that of the shipped suite where it is not given."""
    kind: SuiteKind
    revision: str | None = None
    """Commit, tag or branch of the suite's hub data set, in place of the one that it states."""
    shuffle: int | None = None
    """Seed of an order drawn at random, in which ``skip`` and ``limit`` count; None keeps the suite's."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Leave out the first so many prompts."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use so many prompts."""

    @model_validator(mode="before")
    @classmethod
    def _as_shipped(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("suite"), str):
            return data
        spec = shipped_suite(data["suite"])
        return {"name": spec.name, "kind": spec.kind, **data}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.suite is None) == (self.path is None):
            raise ValueError("expected a suite or a path, got both or neither")
        if self.suite is not None and self.kind is not shipped_suite(self.suite).kind:
            raise ValueError(
                f"expected kind {shipped_suite(self.suite).kind} for suite {self.suite}, got {self.kind}"
            )
        if self.path is not None and self.revision and not self.path.endswith((".yaml", ".yml")):
            raise ValueError("expected a revision with a suite of a hub data set, got one with a file")
        return self


class GenerationConfig(Config):
    """Greedy generation of the answers to judge."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Prompts answered at once; halved where memory runs out. A CPU answers 64 faster than twice 32."""


class Engine(StrEnum):
    """What computes answers and log-probabilities."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    """Faster, on GPUs; needs the extra ``vllm`` wherever runs are opened and evaluated."""
    ENDPOINT = "endpoint"
    """A server that somebody runs; which model answers there is taken at its word."""


class SequentialConfig(Config):
    """Suites are asked in random order, and only until their outcome at the gate is settled."""

    error: Annotated[float, Field(ge=0, le=MAX_ERROR)] = 0.01
    """Probability, at most, that the outcome of any rule of the gate on the suites of an arm differs from
    that of the whole suites. 0 stops only where nothing that may come can change it."""
    seed: int = 0
    """Of the random order."""


class EvaluationConfig(Config):
    """What is measured of every arm."""

    utility: UtilityConfig
    suites: Annotated[tuple[SuiteConfig, ...], Field(min_length=1)]
    judge: JudgeConfig = "refusal_phrases"
    """What flags answers to harmful requests."""
    refusal_judge: JudgeConfig = "refusal_phrases"
    """What flags refusals of harmless requests; guards that see harm alone cannot."""
    generation: GenerationConfig = GenerationConfig()
    engine: Engine = Engine.TRANSFORMERS
    """Figures of different engines are not compared."""
    endpoint: EndpointConfig | None = None
    """The server of the engine ``endpoint``."""
    sequential: SequentialConfig | None = None
    """Stop suites early. Looked at after every ``generation.batch_size`` answers."""

    @model_validator(mode="after")
    def _suites_can_be_judged(self) -> Self:
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected suites of different names, got twice: {', '.join(twice)}")
        if not self.suites_of(SuiteKind.HARMFUL):
            raise ValueError(
                "expected a suite of kind harmful, got none: the gate could never let an adapter pass"
            )
        if blind := blind_to(self.refusal_judge, SuiteKind.OVER_REFUSAL):
            raise ValueError(
                f"expected a refusal_judge that sees refusals ({', '.join(JUDGES_OF_REFUSALS)}), "
                f"got {', '.join(blind)}, which sees harm alone"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_its_settings(self) -> Self:
        if (self.engine is Engine.ENDPOINT) != (self.endpoint is not None):
            raise ValueError("expected engine: endpoint and a section endpoint together, got one of them")
        return self

    @model_validator(mode="after")
    def _judges_leave_the_model_loaded(self) -> Self:
        judges = {kind: self.judge_of(kind) for kind in SuiteKind if self.suites_of(kind)}
        if self.sequential and (loading := sorted({n for j in judges.values() for n in loads_model(j)})):
            raise ValueError(
                f"expected judges that load no model here ({', '.join(JUDGES_WITHOUT_MODEL)}) for "
                f"sequential, which judges while the judged model is loaded, got {', '.join(loading)}"
            )
        return self

    def judge_of(self, kind: SuiteKind) -> JudgeConfig:
        """What judges suites of one kind."""
        return self.judge if kind is SuiteKind.HARMFUL else self.refusal_judge

    def suites_of(self, kind: SuiteKind) -> list[str]:
        """Names of the suites of one kind."""
        return [suite.name for suite in self.suites if suite.kind is kind]


class Rung(Config):
    """A round of ``tune`` that only a part of the prompts is asked in, after which candidates are dropped."""

    prompts: Annotated[float, Field(gt=0, lt=1)]
    """Share of every suite's prompts asked by the end of it, those of earlier rounds included."""
    keep: Annotated[float, Field(gt=0, le=1)]
    """Largest share of its candidates that goes on, at least one of them."""


class TuningConfig(Config):
    """How ``tune`` chooses a merge: on a development split, whose prompts and documents nothing else uses.

    What is not said here, as judges and generation, is as in ``evaluation``.
    """

    suites: Annotated[tuple[SuiteConfig, ...], Field(min_length=1)]
    """Suites of the development split; they share no prompt with those of ``evaluation``."""
    utility: UtilityConfig
    """Utility task of the development split; a ``limit`` makes it cheaper."""
    grid: SweepGrid = SweepGrid()
    """The candidates."""
    max_over_refusal_rate: Rate | Limits
    """Largest over-refusal rate on the development split: one number, or suite name to number."""
    min_gain_kept: Finite | None = None
    """Smallest share of the utility gained by fine-tuning that a candidate keeps."""
    max_utility_loss: NotNegative | None = None
    """Margin of non-inferiority in the metric's own unit: the paired 95 % interval of the utility lost
    against the fine-tuned adapter ends at or below it."""
    rungs: Annotated[tuple[Rung, ...], Field(max_length=2)] = (
        Rung(prompts=0.2, keep=0.4),
        Rung(prompts=0.5, keep=0.4),
    )
    """Rounds before the last, which asks all prompts. None: every candidate is asked every prompt."""
    alpha: Level = 0.05
    """Level of the paired tests by which a round drops candidates that do more harm than its best."""
    seed: int = 0
    """Seed of the order in which prompts are asked."""
    arms: tuple[Literal["safemerge", "scale", "safelora", "resta"], ...] = (
        "safemerge",
        "scale",
        "safelora",
        "resta",
    )
    """What the choice is shown beside on the final split, with the aligned model and the fine-tuned adapter:
    the merge as configured, and other methods with their own weights."""

    @model_validator(mode="after")
    def _can_choose(self) -> Self:
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected suites of different names, got twice: {', '.join(twice)}")
        kinds = {suite.kind for suite in self.suites}
        if lacking := sorted(set(SuiteKind) - kinds):
            raise ValueError(f"expected suites of both kinds, got none of kind {', '.join(lacking)}")
        if self.min_gain_kept is None and self.max_utility_loss is None:
            raise ValueError(
                "expected min_gain_kept or max_utility_loss, got neither: the least harm alone may be had by "
                "forgetting the task"
            )
        refusing = {suite.name for suite in self.suites if suite.kind is SuiteKind.OVER_REFUSAL}
        limits = self.max_over_refusal_rate
        if isinstance(limits, dict) and (strange := sorted(limits.keys() - refusing)):
            raise ValueError(
                f"expected max_over_refusal_rate to name over_refusal suites of tuning "
                f"({', '.join(sorted(refusing))}), got {', '.join(strange)}"
            )
        shares = [rung.prompts for rung in self.rungs]
        if shares != sorted(set(shares)):
            raise ValueError(f"expected rungs whose share of the prompts rises, got {shares}")
        return self


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
    aligned_model: str
    """Folder or hub id (``name@revision``) of the model that was made safe and is fine-tuned here."""
    unaligned_model: str
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
        suites = self.evaluation.suites_of(SuiteKind.OVER_REFUSAL)
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
