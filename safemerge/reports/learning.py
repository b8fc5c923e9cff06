"""Coefficients fitted by gradient, and what the fit saw and cost."""

from __future__ import annotations

from pydantic import Field, JsonValue

from safemerge.described import FORMAT_VERSION, Record


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
