"""What is ours inside TRL's training loop: the loss on CPU, the progress lines, the whole-checkpoint mark.

This module imports trl and transformers; :mod:`safemerge.training.sft` imports it only
once training begins.
"""
# ruff: noqa: TID253
# mypy: disallow-subclassing-any=False

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from trl import SFTTrainer

from safemerge.errors import NonFiniteError
from safemerge.training.answers import IGNORED, answer_nll

OnLog = Callable[[Mapping[str, float], int], None]
"""Receives metrics and their optimiser step: loss, learning_rate, grad_norm, seconds_per_step."""

_MARKER = "complete.json"
"""Written into a checkpoint after everything else, so that a half-written one is told apart."""

logger = logging.getLogger(__name__)


class AnswerTrainer(SFTTrainer):
    """TRL's trainer, with logits only where answers are when it runs on a CPU.

    TRL scores the answers alone on CUDA, but every position on a CPU, where the
    output layer is a third of a small model's work.
    """

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the answer tokens, in nats."""
        if self.args.device.type != "cpu" or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        total = answer_nll(model, {key: value for key, value in inputs.items() if key != "labels"}, labels)
        if num_items_in_batch is None:
            return total / (labels[:, 1:] != IGNORED).sum()
        # The tokens of all processes, whose gradients are averaged in the end.
        return total * self.accelerator.num_processes / num_items_in_batch


class Progress(TrainerCallback):
    """One log line and one call of ``on_log`` per logging interval.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """

    def __init__(self, steps: int, on_log: OnLog | None) -> None:
        self._steps = steps
        self._on_log = on_log
        self._started_s = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a resumed training begins at a later step."""
        self._started_s, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Report step, loss, pace and the time that is left."""
        if "loss" not in logs:
            return
        step, loss = state.global_step, float(logs["loss"])
        if not math.isfinite(loss):
            raise NonFiniteError(f"training loss at step {step}: expected a finite number, got {loss}")
        if not state.is_world_process_zero:
            return
        step_s = (time.monotonic() - self._started_s) / max(1, step - self._first_step)
        minutes, seconds = divmod(round(step_s * (self._steps - step)), 60)
        logger.info(
            "step %d/%d  loss %.4f  %.2f s/step  ETA %d:%02d",
            step,
            self._steps,
            loss,
            step_s,
            minutes,
            seconds,
        )
        if self._on_log is not None:
            metrics = {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm") if key in logs}
            self._on_log(metrics | {"seconds_per_step": step_s}, step)


class CheckpointMarker(TrainerCallback):
    """Marks a checkpoint as whole once everything else of it is written, and clears away stale ones."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Discard every checkpoint but the one resumed from.

        The trainer keeps the two of the highest steps, so one left by another training
        would have this one's deleted in its stead.
        """
        if state.is_world_process_zero:
            for folder in Path(args.output_dir).glob("checkpoint-*"):
                if checkpoint_step(folder) != state.global_step:
                    shutil.rmtree(folder)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the marker with the fingerprint of what the checkpoint was made from."""
        PartialState().wait_for_everyone()  # each process writes its part
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _MARKER).write_text(json.dumps({"fingerprint": self._fingerprint}), encoding="utf-8")


def last_complete_checkpoint(work: Path, fingerprint: str) -> Path | None:
    """The checkpoint with the highest step that is whole and was made from the same inputs."""
    complete = []
    for marker in work.glob(f"checkpoint-*/{_MARKER}"):
        try:
            same = json.loads(marker.read_text(encoding="utf-8"))["fingerprint"] == fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same:
            complete.append(marker.parent)
    return max(complete, key=checkpoint_step, default=None)


def checkpoint_step(folder: Path) -> int:
    """The optimiser step that a checkpoint's folder is named by."""
    return int(folder.name.rpartition("-")[2])
