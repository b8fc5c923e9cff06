"""How coefficients are learned: :mod:`safemerge.training.coefficients` says what the fit does."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from safemerge.config.base import Config

Positive = Annotated[int, Field(gt=0)]
HarmWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LearningConfig(Config):
    """A fit of one coefficient a layer for each of two adapters."""

    harm_weights: Annotated[tuple[HarmWeight, ...], Field(min_length=1)] = (1.0, 3.0, 10.0)
    """Values of λ, the weight of the loss of safe answers beside the task's: one fit each."""
    steps: Positive = 60
    """Most optimiser steps of a fit."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05
    """Of Adam: about how far a coefficient moves in one step."""
    task_batch: Positive = 4
    """Task examples a step."""
    safety_batch: Positive = 6
    """Safety examples a step."""
    task_examples: Annotated[int, Field(gt=1)] = 100
    """Most examples of the task's training data to calibrate on."""
    safety_examples: Annotated[int, Field(gt=1)] = 200
    """The same of the safety training data."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of them that is held out to stop by."""
    evaluate_every_steps: Positive = 10
    patience: Positive = 2
    """Evaluations in a row without a better loss on the held-out part after which a fit ends."""
    pull: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the mean squared distance from the start, which pulls towards SafeMERGE's choice."""
    most_task: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Upper bound of α; the lower one is 0."""
    most_safety: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.5
    """Upper bound of β; the lower one is 0."""
    max_length_tokens: Positive = 512
    """Examples are cut at so many tokens."""
    warm_start: bool = False
    """Whether a fit starts from the coefficients of the next smaller λ, and not from SafeMERGE's choice."""
    seed: int = 0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [f"{weight:g}" for weight in set(self.harm_weights)]  # as files and candidates are called
        if alike := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected harm_weights that differ in six digits, got several {alike[0]}")
        return self
