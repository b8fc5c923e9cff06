"""The ``task_training`` and ``safety_training`` sections: data, and how an adapter is fine-tuned."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from safemerge.config.base import Config
from safemerge.config.places import DataPlace
from safemerge.config.values import Share


class DataSource(Config):
    """Prompt and response pairs: a JSON Lines file, a hub data set, or a folder that ``datasets`` reads."""

    path: DataPlace
    """A ``.jsonl`` file or a folder (relative to the config file), or a hub data-set id."""
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
