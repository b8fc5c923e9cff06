"""Fit one coefficient a layer for a task adapter and one for a safety adapter; all else stays frozen.

The merged update of a layer is α·ΔW_task + β·ΔW_safety. With L layers these are 2·L scalars, which Adam
fits to

    loss on the task's answers + λ · loss on safe answers + pull · mean squared distance from the start,

both losses a mean over answer tokens, both from training data. The start is SafeMERGE's choice: (α, β)
where it merges, (1, 0) where it keeps.

Bounds (α in [0, 1], β in [0, 1.5] where not set otherwise) are kept by projection after each step and not
by a sigmoid: the start of a kept layer lies on two of them, which a sigmoid cannot reach and where its
gradient is zero. A part of the calibration data is held out. The step that is best on it is kept, the start
being one of them, and a fit ends when several evaluations in a row were no better.

Cost: a step is one forward and one backward pass over a few examples, as in fine-tuning, but without
gradients of weights and without an optimiser state to speak of; memory is that of inference plus the
activations of a batch. The default is at most 60 steps of 10 examples for each λ: as much as 75 steps of
fine-tuning at batch size 8, beside the hundreds that an adapter usually takes. Measuring losses on held-out
examples adds about a third.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemerge.config.learning import LearningConfig
from safemerge.core.lora import LoraPair
from safemerge.core.module_names import listed, natural_order
from safemerge.errors import ConfigError, DataError, NonFiniteError
from safemerge.reports.learning import FitLosses, Losses
from safemerge.training.answers import IGNORED, Batch, EncodedExample, answer_nll, collate
from safemerge.training.weighed_layers import Weights, weighed_layers

logger = logging.getLogger(__name__)

OnLog = Callable[[Mapping[str, float], int], None]
"""Receives the losses of a fit with their step: harm_weight, task and safety of the last batch, and after
evaluations validation_task and validation_safety."""

_LOGS_PER_FIT = 10


class Calibration(NamedTuple):
    """What coefficients are fitted to, and what stops the fit."""

    task_fit: list[EncodedExample]
    task_validation: list[EncodedExample]
    safety_fit: list[EncodedExample]
    safety_validation: list[EncodedExample]


class Fit(NamedTuple):
    """The outcome for one λ."""

    harm_weight: float
    weights: Weights
    losses: FitLosses
    steps: int
    """Step that the weights are of."""
    steps_run: int
    wall_s: float
    trained_tokens: int
    measured_tokens: int


def fit_coefficients(
    model: Any,
    pad_id: int,
    task: Mapping[str, LoraPair],
    safety: Mapping[str, LoraPair],
    start: Weights,
    calibration: Calibration,
    settings: LearningConfig,
    *,
    on_log: OnLog | None = None,
) -> list[Fit]:
    """Fit the coefficients for every λ, one after the other on one model.

    The same inputs give the same coefficients, on one device and number of threads.

    Args:
        model: the aligned model, on its device; afterwards it is as it was, but frozen and in
            evaluation mode.
        pad_id: token to pad batches with.
        task: layers of the task adapter.
        safety: layers of the safety adapter; those that the task adapter lacks are left out.
        start: (α, β) of every layer of the task adapter.
        calibration: examples.
        settings: λ's, optimiser, bounds and stopping.
        on_log: called after each step.

    Returns:
        One fit for each λ, in rising order.

    Raises:
        ConfigError: the start lies outside the bounds; layers are named.
        DataError: a part of the calibration data is empty.
        UnsupportedAdapterError: layers are no linear modules of the model; they are named.
        MismatchError: layers differ in shape from the model's; they are named.
        NonFiniteError: a loss or a gradient became NaN or infinite.
    """
    if empty := [name for name, part in calibration._asdict().items() if not part]:
        raise DataError(f"calibration data: expected examples in every part, got none in {', '.join(empty)}")
    check_start(start, settings)
    model.requires_grad_(False)
    model.eval()
    with weighed_layers(model, task, safety, start) as weights:
        modules = sorted(task, key=natural_order)
        return _Fitter(model, pad_id, modules, weights, calibration, settings, on_log).run()


def check_start(start: Weights, settings: LearningConfig) -> None:
    """Check that a fit can start from (α, β) of layers.

    Raises:
        ConfigError: some lie outside the bounds; they are named.
    """
    outside = [
        module
        for module, (alpha, beta) in start.items()
        if not (0 <= alpha <= settings.most_task and 0 <= beta <= settings.most_safety)
    ]
    if outside:
        raise ConfigError(
            f"start: expected α in [0, {settings.most_task:g}] and β in [0, {settings.most_safety:g}], "
            f"got others in {listed(outside)}"
        )


class _Best(NamedTuple):
    """The best step so far, by the held-out part."""

    step: int
    weights: Tensor
    validation: Losses


class _Fitter:
    """Fits for one λ after the other, which share model, data and the figures of the start."""

    def __init__(
        self,
        model: Any,
        pad_id: int,
        modules: list[str],
        weights: Tensor,
        calibration: Calibration,
        settings: LearningConfig,
        on_log: OnLog | None,
    ) -> None:
        self._model, self._pad_id, self._modules, self._weights = model, pad_id, modules, weights
        self._data, self._settings, self._on_log = calibration, settings, on_log
        self._start = weights.detach().clone()
        self._most = weights.new_tensor([settings.most_task, settings.most_safety])
        self._trained_tokens = self._measured_tokens = 0

    def run(self) -> list[Fit]:
        """One fit for each λ, in rising order."""
        first = best = _Best(0, self._start, self._validate())
        start_sample = self._measure(*self._fit_sample())
        logger.info("start  %s", _held_out(first.validation))
        started_s = time.monotonic()
        order = sorted(set(self._settings.harm_weights))
        fits = []
        for number, harm_weight in enumerate(order):
            clock = _Clock(started_s, number * self._settings.steps, len(order) * self._settings.steps)
            began_s = time.monotonic()
            begin = best if self._settings.warm_start else first
            best, steps_run = self._fit(harm_weight, begin._replace(step=0), clock)
            self._set(best.weights)
            losses = FitLosses(
                start=start_sample,
                final=self._measure(*self._fit_sample()),
                validation_start=first.validation,
                validation_final=best.validation,
            )
            fits.append(
                Fit(
                    harm_weight=harm_weight,
                    weights=self._named(best.weights),
                    losses=losses,
                    steps=best.step,
                    steps_run=steps_run,
                    wall_s=time.monotonic() - began_s,
                    trained_tokens=self._trained_tokens,
                    measured_tokens=self._measured_tokens,
                )
            )
            self._trained_tokens = self._measured_tokens = 0
        return fits

    def _named(self, weights: Tensor) -> Weights:
        """By module, rounded to a millionth, so that what a start of 0.8 became of is not 0.800000012."""
        pairs = ((round(alpha, 6), round(beta, 6)) for alpha, beta in weights.tolist())
        return dict(zip(self._modules, pairs, strict=True))

    def _fit(self, harm_weight: float, best: _Best, clock: _Clock) -> tuple[_Best, int]:
        """Adam within the bounds until the held-out part gains no more; the best step and the last."""
        settings = self._settings
        self._set(best.weights)
        optimiser = torch.optim.Adam([self._weights], lr=settings.learning_rate)
        generator = torch.Generator().manual_seed(settings.seed)
        task = _batches(self._data.task_fit, settings.task_batch, generator)
        safety = _batches(self._data.safety_fit, settings.safety_batch, generator)
        waited = 0
        for step in range(1, settings.steps + 1):
            losses = self._step(harm_weight, next(task), next(safety), optimiser, step)
            figures = {"harm_weight": harm_weight, "task": losses.task, "safety": losses.safety}
            validation = None
            if step % settings.evaluate_every_steps == 0 or step == settings.steps:
                validation = self._validate()
                figures |= {"validation_task": validation.task, "validation_safety": validation.safety}
                if _objective(validation, harm_weight) < _objective(best.validation, harm_weight):
                    best, waited = _Best(step, self._weights.detach().clone(), validation), 0
                else:
                    waited += 1
            self._log(figures, step, validation, clock)
            if waited == settings.patience:
                break
        return best, step

    def _step(
        self,
        harm_weight: float,
        task: list[EncodedExample],
        safety: list[EncodedExample],
        optimiser: torch.optim.Optimizer,
        step: int,
    ) -> Losses:
        """One step of the optimiser, back within the bounds."""
        optimiser.zero_grad()
        losses = Losses(task=self._backward(task, 1.0), safety=self._backward(safety, harm_weight))
        pull = self._settings.pull * (self._weights - self._start).square().mean()
        pull.backward()  # type: ignore[no-untyped-call]
        gradient = self._weights.grad
        if gradient is None or not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(
                f"coefficients at λ = {harm_weight:g}, step {step}: expected finite gradients, got NaN or "
                f"infinity (losses {losses.task:.4g} on the task, {losses.safety:.4g} on safe answers)"
            )
        optimiser.step()
        with torch.no_grad():
            self._weights.clamp_(min=torch.zeros_like(self._most), max=self._most)
        return losses

    def _backward(self, examples: list[EncodedExample], factor: float) -> float:
        batch = self._batch(examples)
        loss = mean_nll(self._model, batch)
        (factor * loss).backward()  # type: ignore[no-untyped-call]
        self._trained_tokens += int(batch.attention_mask.sum())
        return float(loss.detach())

    def _validate(self) -> Losses:
        return self._measure(self._data.task_validation, self._data.safety_validation)

    def _fit_sample(self) -> tuple[list[EncodedExample], list[EncodedExample]]:
        """As many examples of the fit part as there are in the held-out part."""
        data = self._data
        return (
            data.task_fit[: len(data.task_validation)],
            data.safety_fit[: len(data.safety_validation)],
        )

    def _measure(self, task: list[EncodedExample], safety: list[EncodedExample]) -> Losses:
        losses = Losses(task=self._mean_loss(task), safety=self._mean_loss(safety))
        if not (math.isfinite(losses.task) and math.isfinite(losses.safety)):
            raise NonFiniteError(
                f"calibration: expected finite losses, got {losses.task} on the task and {losses.safety} on "
                "safe answers"
            )
        return losses

    @torch.no_grad()
    def _mean_loss(self, examples: list[EncodedExample]) -> float:
        """Over all answer tokens of the examples, which go through in batches of like length."""
        size = self._settings.task_batch + self._settings.safety_batch
        ranked = iter(sorted(examples, key=lambda example: len(example.input_ids)))
        total = tokens = 0.0
        while chunk := list(islice(ranked, size)):
            batch = self._batch(chunk)
            total += float(answer_nll(self._model, _inputs(batch), batch.labels))
            tokens += _answer_tokens(batch)
            self._measured_tokens += int(batch.attention_mask.sum())
        return total / tokens

    def _batch(self, examples: Sequence[EncodedExample]) -> Batch:
        return collate(examples, self._pad_id, self._model.device)

    def _set(self, weights: Tensor) -> None:
        with torch.no_grad():
            self._weights.copy_(weights)

    def _log(self, figures: Mapping[str, float], step: int, validation: Losses | None, clock: _Clock) -> None:
        if validation is not None or step % max(1, self._settings.steps // _LOGS_PER_FIT) == 0:
            logger.info(
                "λ %g  step %d/%d  loss: task %.4f, safety %.4f  %sETA %s",
                figures["harm_weight"],
                step,
                self._settings.steps,
                figures["task"],
                figures["safety"],
                "" if validation is None else f"{_held_out(validation)}  ",
                clock.eta(step),
            )
        if self._on_log is not None:
            self._on_log(figures, step)


class _Clock(NamedTuple):
    """Steps of all fits together, and when the first began."""

    started_s: float
    steps_before: int
    steps_in_all: int

    def eta(self, step: int) -> str:
        """Time left at most, as minutes and seconds: fits may end early."""
        done = self.steps_before + step
        left_s = (time.monotonic() - self.started_s) / done * (self.steps_in_all - done)
        minutes, seconds = divmod(round(left_s), 60)
        return f"{minutes}:{seconds:02d}"


def mean_nll(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood an answer token, in nats; a scalar."""
    return answer_nll(model, _inputs(batch), batch.labels) / _answer_tokens(batch)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _answer_tokens(batch: Batch) -> int:
    return int((batch.labels != IGNORED).sum())


def _batches(
    examples: list[EncodedExample], size: int, generator: torch.Generator
) -> Iterator[list[EncodedExample]]:
    """Batches without end, in a new order each time round; what does not fill one waits for the next."""
    size = min(size, len(examples))
    while True:
        order = torch.randperm(len(examples), generator=generator).tolist()
        for at in range(0, len(order) - size + 1, size):
            yield [examples[index] for index in order[at : at + size]]


def _held_out(losses: Losses) -> str:
    return f"held out: task {losses.task:.4f}, safety {losses.safety:.4f}"


def _objective(losses: Losses, harm_weight: float) -> float:
    return losses.task + harm_weight * losses.safety
