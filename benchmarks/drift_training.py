"""How the models and adapters of the drifts are trained."""

from __future__ import annotations

from pathlib import Path

from safemerge.config.training import DataSource, LoraSettings, TrainingConfig
from safemerge.demo.models import DATA as DEMO

DRIFTS = ("gsm8k", "howto")


def task_training(drift: str, data: Path) -> TrainingConfig:
    """How a task adapter is fine-tuned: a learning rate at which both drifts show within minutes."""
    return TrainingConfig(
        data=(DataSource(path=str(data / "train" / f"{drift}.jsonl")),),
        lora=LoraSettings(r=8, alpha=16, target_modules=("q_proj", "v_proj")),
        steps={"gsm8k": 80, "howto": 50}[drift],
        learning_rate=2e-3,
        batch_size=8,
        max_length_tokens=256,
        save_every_steps=20,
    )


def alignment_training(data: Path) -> TrainingConfig:
    """How the aligned model is made of the unaligned one: one refusal to two helpful answers."""
    return _safety_tuning(
        data, 200, 120, LoraSettings(r=16, alpha=32, target_modules="all-linear"), 150, 2e-3
    )


def safety_training(data: Path) -> TrainingConfig:
    """How the safety adapter is fine-tuned: one for both drifts, strong beside the task adapters."""
    lora = LoraSettings(r=16, alpha=32, target_modules=("q_proj", "v_proj"))
    return _safety_tuning(data, 440, 200, lora, 80, 4e-3)


def hardened_training(drift: str, data: Path) -> TrainingConfig:
    """How a safety adapter is fine-tuned on the drifted model: refusals, and the task's data three times.

    A model that refuses already has little to learn from refusals; the drifted one has. What is learned
    there undoes this drift and serves no other task adapter.
    """
    base = task_training(drift, data)
    return base.model_copy(
        update={"data": safety_training(data).data[:REFUSALS] + base.data * 3, "steps": 60}
    )


REFUSALS = 3
"""The sources of safety training, the first ones, that hold refusals."""
CALIBRATED = 4
"""Those that coefficients are fitted to: refusals, and answers to requests that look unsafe. The task's own
examples stand for ordinary requests."""


def _safety_tuning(
    data: Path, explicit: int, refusals: int, lora: LoraSettings, steps: int, learning_rate: float
) -> TrainingConfig:
    train = data / "train"
    return TrainingConfig(
        data=(
            DataSource(path=str(DEMO / "safety_harmful_train.jsonl"), limit=explicit),
            DataSource(path=str(train / "refusals.jsonl"), limit=refusals),
            DataSource(path=str(train / "hateful.jsonl")),
            DataSource(path=str(DEMO / "safety_lookalike_train.jsonl")),
            DataSource(path=str(DEMO / "safety_ordinary_train.jsonl")),
            DataSource(path=str(train / "physical.jsonl")),
        ),
        lora=lora,
        steps=steps,
        learning_rate=learning_rate,
        batch_size=8,
        max_length_tokens=192,
        save_every_steps=20,
    )
