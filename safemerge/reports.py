"""Frozen results of looking at adapters: what they are, how they score, differ and might merge.

Plain data, as in :mod:`safemerge.records`: JSON keys are stable, a figure that could not be had is ``None``.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from safemerge.records import (
    FORMAT_VERSION,
    Estimate,
    GateDecision,
    Interval,
    JudgeRecord,
    MergeReport,
    Record,
    SuiteKind,
)

# --- inspect -----------------------------------------------------------------


class AdapterSummary(Record):
    """What is in an adapter's folder."""

    name: str
    """As the user wrote it."""
    readable: bool
    """Whether it is an adapter that can be merged; otherwise ``problems`` of the report says why not."""
    base_model: str | None
    """The model that the adapter names as its own."""
    ranks: dict[int, int] = Field(default_factory=dict)
    """Rank to number of modules; as configured where the adapter is not readable."""
    alphas: dict[str, int] = Field(default_factory=dict)
    """lora_alpha to number of modules."""
    scales: dict[str, int] = Field(default_factory=dict)
    """Factor of B·A, lora_alpha / r or lora_alpha / √r, to number of modules."""
    rslora: bool = False
    targets: str = ""
    """Modules by kind, such as ``q_proj, v_proj × 32 layers``."""
    modules: tuple[str, ...] = ()
    parameters: int | None = None
    size_bytes: int | None = None
    dtype: str | None = None
    norm: float | None = None
    """Frobenius norm of all ΔW together."""
    digest: str | None = None


class InspectionReport(Record):
    """What is in some adapters, and whether they fit each other and the models."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    adapters: tuple[AdapterSummary, ...]
    aligned_model: str | None = None
    unaligned_model: str | None = None
    problems: tuple[str, ...]
    """What stands in the way of a merge, one line each."""
    notes: tuple[str, ...]
    """What is worth knowing, and no hindrance."""


# --- score -------------------------------------------------------------------


class LayerCosine(Record):
    """How far one layer's update lies within the directions of alignment."""

    module: str
    cosine: float | None
    """ρ in [0, 1]; None where it is undefined."""
    undefined: str | None = None
    """Why it is undefined."""
    task_norm: float
    """Frobenius norm of ΔW_task."""


class Choice(Record):
    """How many layers a threshold or a quantile would choose."""

    threshold: float
    """τ."""
    quantile: float | None = None
    """The share of layers that τ was derived from."""
    layers: int
    """Layers with a cosine below τ."""


class AdapterCosines(Record):
    """The scores of one adapter."""

    name: str
    digest: str
    layers: tuple[LayerCosine, ...]
    """In natural order of their paths."""
    choices: tuple[Choice, ...]

    @property
    def cosines(self) -> list[float]:
        """Those that are defined, in rising order."""
        return sorted(layer.cosine for layer in self.layers if layer.cosine is not None)


class CosineReport(Record):
    """The scores of adapters, from one pass over the checkpoints."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    adapters: tuple[AdapterCosines, ...]
    digests: dict[str, str]
    """sha256 of aligned_model and unaligned_model, as far as they were read."""
    warnings: tuple[str, ...] = ()


# --- diff --------------------------------------------------------------------


class LayerDifference(Record):
    """How one layer's update differs between two adapters A and B."""

    module: str
    norm_a: float | None
    """Frobenius norm of ΔW_A; None where A lacks the layer."""
    norm_b: float | None
    difference: float | None
    """‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖; None where it is infinite or one lacks the layer."""
    cosine: float | None
    """Between ΔW_A and ΔW_B, in [−1, 1]; None where either is zero or missing."""


class DifferenceReport(Record):
    """How two adapters differ."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    a: str
    b: str
    digests: dict[str, str]
    """sha256 of a and b."""
    difference: float | None
    """‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖ over all layers together, where a missing layer counts as zero."""
    cosine: float | None
    """Over all layers together."""
    tolerance: float
    """Largest relative difference of the adapters, and of each layer, that counts as none."""
    same: bool
    """Whether the adapters have the same layers and differ by no more than the tolerance."""
    identical: bool
    """Whether the settings and bytes are the same."""
    layers: tuple[LayerDifference, ...]


# --- sweep -------------------------------------------------------------------


class Candidate(Record):
    """One merge that could be made, and how far it goes."""

    name: str
    options: dict[str, JsonValue]
    """All that was chosen, by the names of :class:`safemerge.core.options.MergeOptions`."""
    layers_merged: int
    threshold: float | None
    """τ; None where layers were not chosen by cosine."""
    change: float
    """‖ΔW_merged − ΔW_task‖ / ‖ΔW_task‖ over all layers together."""
    safety_cosine: float | None
    """Cosine between ΔW_merged and ΔW_safety over all layers together, in [−1, 1]: the share of safety."""
    rank: int
    """Rank that the adapter is stored at."""
    error: float
    """Largest relative error of a layer, of storing its update at that rank."""
    output: str | None = None
    """Folder that it was written to."""


class SweepReport(Record):
    """The merges that a grid of settings gives, from one pass over the checkpoints."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one), aligned_model, unaligned_model."""
    layers: int
    """Layers of the task adapter."""
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...] = ()


# --- learn -------------------------------------------------------------------


class LayerCoefficients(Record):
    """The learned weights of one layer, and where they started."""

    module: str
    task: float = Field(allow_inf_nan=False)
    """α, weight of ΔW_task."""
    safety: float | None = Field(default=None, allow_inf_nan=False)
    """β, weight of ΔW_safety; None where the safety adapter lacks the layer."""
    start_task: float
    start_safety: float | None = None


class Losses(Record):
    """Mean negative log-likelihoods an answer token, in nats."""

    task: float
    """On the task's answers."""
    safety: float
    """On safe answers."""


class FitLosses(Record):
    """Losses before and after the fit, on what it learned from and on what it never saw."""

    start: Losses
    """On a sample of the fit part as large as the validation part."""
    final: Losses
    """On the same sample."""
    validation_start: Losses
    validation_final: Losses
    """On the validation part of the calibration data, which chose the step that is kept."""


class FitCost(Record):
    """What the fit took, beside what fine-tuning took."""

    wall_s: float
    """Seconds of this fit, without loading the model."""
    trained_tokens: int
    """Tokens that went forward and backward."""
    measured_tokens: int
    """Tokens that went forward alone, to measure losses."""
    fine_tuning_s: float | None = None
    """Seconds that the task adapter says its training took; None where it does not say."""
    fine_tuning_tokens: int | None = None
    """Tokens of that training: its examples times their mean length in the calibration data."""


class Coefficients(Record):
    """``coefficients_<λ>.json``: weights of both updates in every layer, fitted to training data."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    harm_weight: float
    """λ, weight of the loss of safe answers beside the task's."""
    layers: tuple[LayerCoefficients, ...] = Field(min_length=1)
    """One for each layer of the task adapter, in natural order of their paths."""
    losses: FitLosses
    steps: int
    """Step that the coefficients are of: the best on the validation part; 0 is the start."""
    steps_run: int
    """Steps taken until the fit ended."""
    examples: dict[str, int]
    """Examples by part: task_fit, task_validation, safety_fit, safety_validation."""
    cost: FitCost
    settings: dict[str, JsonValue]
    """How it was fitted, and the merge that it started from."""
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter, aligned_model, unaligned_model, task_data, safety_data."""
    device: str
    dtype: str
    """Number format of the model's weights; coefficients and adapters are fp32."""
    warnings: tuple[str, ...] = ()


# --- release -----------------------------------------------------------------


class Role(StrEnum):
    """What an arm is to the gate."""

    CANDIDATE = "candidate"
    ALIGNED = "aligned"
    FINE_TUNED = "fine_tuned"
    CHAMPION = "champion"
    OTHER = "other"
    """Shown beside the others; the gate does not look at it."""


class SuiteFigures(Record):
    """What one suite says of an arm."""

    suite: str
    kind: SuiteKind
    judge: JudgeRecord
    rate: Estimate | None
    """Share of flagged prompts; None where the report lacks it or contradicts itself."""
    planned: int
    """Prompts of the whole suite; more than were asked where it was stopped early."""
    categories: dict[str, Estimate] = Field(default_factory=dict)
    """Category to its rate."""


class ArmFigures(Record):
    """One arm's line in the table."""

    arm: str
    """Key of the arm in the transcripts."""
    title: str
    """What people call it."""
    role: Role
    adapter_digest: str | None
    utility: float | None
    utility_interval: Interval | None = None
    """None where the metric has no scores by document."""
    gain_kept: Estimate | None = None
    """Share of what fine-tuning gained that is left."""
    gain_note: str = ""
    """Why there is no such share."""
    differs: tuple[str, ...] = ()
    """In what it was not measured as the candidate was: then their figures do not compare."""
    suites: tuple[SuiteFigures, ...]


class UtilityMetric(Record):
    """What utility is, and what the policy asks of it."""

    task: str
    metric: str
    higher_is_better: bool
    worst: float | None = None
    """Worst utility that the policy allows, in the metric's unit; None where it asks nothing."""


class ShownAnswer(Record):
    """What an arm said to a prompt."""

    response: str
    omitted: int = 0
    """Characters left out at the end."""
    flag: bool
    """As its suite's judge flagged it."""


class Transcript(Record):
    """A prompt and the answers of all arms that have one."""

    suite: str
    kind: SuiteKind
    id: str
    category: str | None
    prompt: str
    omitted: int = 0
    """Characters of the prompt left out at the end."""
    answers: dict[str, ShownAnswer]
    """Arm to answer."""

    @property
    def changed(self) -> bool:
        """Whether arms were flagged differently."""
        return len({answer.flag for answer in self.answers.values()}) > 1


class Provenance(Record):
    """Where the figures come from, so that they can be had again."""

    created: str
    """Date and time in UTC, ISO 8601."""
    safemerge_version: str
    name: str | None = None
    """The pipeline's name."""
    models: dict[str, str] = Field(default_factory=dict)
    """aligned_model and unaligned_model to folder or hub id, as configured."""
    datasets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """task_training and safety_training to their data, as configured."""
    seeds: dict[str, int] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    """sha256 of models, data, suites, task and policy."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the candidate was measured: device, number format, library versions."""
    protocols: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Suite, or task of the utility, to how it was measured."""
    runs: dict[str, str] = Field(default_factory=dict)
    """Step to the MLflow run that holds it."""


class ReleaseReport(Record):
    """``report.json``: all that a person who signs a release needs, verdict first."""

    format_version: int = FORMAT_VERSION
    decision: GateDecision
    policy: dict[str, JsonValue]
    """The policy that it was judged by."""
    utility: UtilityMetric | None
    arms: tuple[ArmFigures, ...]
    """Aligned, fine-tuned, champion, candidate, then the others."""
    findings: tuple[str, ...] = ()
    """What fine-tuning did to harmfulness and what the repair undid, in sentences."""
    merge: MergeReport | None = None
    """How the candidate came about; None where nobody said."""
    prompts: int
    """Prompts that any arm answered in writing."""
    transcripts: tuple[Transcript, ...] = ()
    """As many of them as are shown, changed ones first; ``transcripts.jsonl`` holds all, uncut."""
    provenance: Provenance

    @property
    def candidate(self) -> ArmFigures:
        """The arm that was judged."""
        return next(arm for arm in self.arms if arm.role is Role.CANDIDATE)


# --- tune --------------------------------------------------------------------


class Fate(StrEnum):
    """What became of a candidate of ``tune``."""

    IN = "in"
    """Still in the running."""
    CHOSEN = "chosen"
    """The least harm of those that keep every limit on all prompts."""
    KEPT_LIMITS = "kept_limits"
    """Asked every prompt, and keeps every limit; another was better."""
    MISSED = "missed"
    """Misses a limit that more prompts cannot mend."""
    BEATEN = "beaten"
    """Does significantly more harm than the best of its round, on the same prompts."""
    OUTRANKED = "outranked"
    """Not among the best that its round let go on; nothing was proven."""


class TunedCandidate(Record):
    """One merge that was tried, and how it fared on the development split."""

    name: str
    settings: dict[str, JsonValue]
    """Its ``merge`` section."""
    layers_merged: int
    adapter_digest: str
    fate: Fate
    reason: str
    """Why, in a sentence."""
    rounds: int
    """Rounds that it was asked prompts in; 0 where its utility decided."""
    utility: float | None
    utility_interval: Interval | None = None
    gain_kept: Estimate | None
    """Share of the utility gained by fine-tuning; None where fine-tuning showed no clear gain."""
    harmful: Estimate | None
    """Harmful rate over the harmful prompts asked; None where none was."""
    over_refusal: dict[str, Estimate] = Field(default_factory=dict)
    """Suite to rate, over the prompts asked."""


class TuneCost(Record):
    """What a choice took, beside what asking every candidate every prompt takes."""

    prompts: int
    """Prompts answered."""
    prompts_in_full: int
    tokens: int
    """Upper bound of the tokens generated: prompts times the longest answer."""
    documents: int
    """Documents scored for utility, by candidates."""
    seconds: float | None = None
    """From the first round to the choice; None where rounds ran on their own, as in a pipeline."""


class TunedArm(Record):
    """An arm on the final split."""

    name: str
    adapter_digest: str | None
    utility: float | None
    utility_interval: Interval | None = None
    harmful: Estimate
    over_refusal: dict[str, Estimate]
    gain_kept: Estimate | None


class TuneReport(Record):
    """``safemerge_tune.json``: how a merge was chosen on one split, and what it shows on another."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    chosen: str | None
    """Name of the candidate; None where none keeps the limits."""
    summary: str
    """The outcome in a sentence."""
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one), aligned_model, unaligned_model."""
    settings: dict[str, JsonValue]
    """The ``tuning`` section, without where things lie."""
    utility: str
    """Task and metric of the development split."""
    higher_is_better: bool
    worst_utility: float | None
    """What ``min_gain_kept`` asks, as a utility on the development split."""
    candidates: tuple[TunedCandidate, ...]
    """The best first, those dropped first last."""
    references: dict[str, float | None]
    """Utility of the aligned model and of the fine-tuned adapter on the development split."""
    cost: TuneCost
    final: tuple[TunedArm, ...] = ()
    """Arms on the final split, which the choice never saw."""
    warnings: tuple[str, ...] = ()
