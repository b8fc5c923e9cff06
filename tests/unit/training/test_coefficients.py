"""Fits on a model of one layer, small enough that the best coefficients are known in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from safemerge.config.learning import LearningConfig
from safemerge.core.lora import LoraPair
from safemerge.errors import ConfigError, DataError, MismatchError, NonFiniteError, UnsupportedAdapterError
from safemerge.training.answers import EncodedExample
from safemerge.training.coefficients import Calibration, Fit, fit_coefficients
from safemerge.training.weighed_layers import weighed_layers

YES, NO, TASK, HARM, PAD = range(5)
"""Tokens: two answers, and the requests that come before them."""
STRENGTH = 2.0
CONVERGED = 0.01
"""Adam at a constant rate ends within a fifth of a step of 0.05 of the optimum."""


class OneLayer(torch.nn.Module):
    """After a request, yes and no are equally likely; updates of ``layer`` see which request it was."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 2)
        self.layer = torch.nn.Linear(2, 5)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]]))
            self.layer.weight.zero_()
            self.layer.bias.copy_(torch.tensor([0.0, 0.0, -50.0, -50.0, -50.0]))

    device = torch.device("cpu")

    def forward(self, input_ids, attention_mask, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.layer(self.embedding(input_ids))[:, logits_to_keep])


def update(request: int, answer: int, strength: float = STRENGTH) -> dict[str, LoraPair]:
    """An update that makes an answer to a request likelier: its logit grows by ``strength``."""
    lora_a, lora_b = torch.zeros(1, 2), torch.zeros(5, 1)
    lora_a[0, request - TASK], lora_b[answer, 0] = 1.0, strength / 2
    return {"layer": LoraPair(lora_a, lora_b, 2.0)}


def answers(request: int, yes: int, no: int) -> list[EncodedExample]:
    return [EncodedExample([request, YES], 1)] * yes + [EncodedExample([request, NO], 1)] * no


def apart() -> Calibration:
    """Three of four task requests want a yes, two of three harmful ones a no."""
    task, harm = answers(TASK, 3, 1), answers(HARM, 1, 2)
    return Calibration(task, task, harm, harm)


def fit(
    calibration: Calibration | None = None,
    task=None,
    safety=None,
    start: tuple[float, float] = (0.8, 0.2),
    model: torch.nn.Module | None = None,
    on_log=None,
    **settings,
) -> list[Fit]:
    whole = {"steps": 150, "patience": 15, "pull": 0.0, "task_batch": 4, "safety_batch": 3}
    return fit_coefficients(
        model or OneLayer(),
        PAD,
        task or update(TASK, YES),
        update(HARM, NO) if safety is None else safety,
        {"layer": start},
        calibration or apart(),
        LearningConfig(**({"harm_weights": (1.0,)} | whole | settings)),
        on_log=on_log,
    )


def test_the_optimum_in_closed_form_is_found():
    """P(yes) = σ(2α) = 3/4 where α = ln 3 / 2; P(no) = σ(2β) = 2/3 where β = ln 2 / 2."""
    (found,) = fit()
    assert found.weights["layer"] == pytest.approx((math.log(3) / 2, math.log(2) / 2), abs=CONVERGED)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.losses.validation_final.task == pytest.approx(entropy, abs=1e-4)  # flat at the optimum
    assert found.losses.validation_start.task > found.losses.validation_final.task
    assert found.losses.final == found.losses.validation_final  # the same examples here


@pytest.mark.parametrize("harm_weight", [0.5, 1.0, 3.0])
def test_the_harm_weight_decides_where_the_two_updates_meet(harm_weight: float):
    """Both pull at one request: the best P(yes) is the mean of 7/8 and 1/4, the latter weighed by λ."""
    calibration = Calibration(*[answers(TASK, 7, 1)] * 2, *[answers(TASK, 1, 3)] * 2)
    (found,) = fit(
        calibration, safety=update(TASK, NO), task_batch=8, safety_batch=4, harm_weights=(harm_weight,)
    )
    alpha, beta = found.weights["layer"]
    wanted = (7 / 8 + harm_weight / 4) / (1 + harm_weight)
    assert STRENGTH * (alpha - beta) == pytest.approx(math.log(wanted / (1 - wanted)), abs=4 * CONVERGED)


def test_weights_stay_within_their_bounds_and_reach_them():
    wishes = Calibration(*[answers(TASK, 4, 0)] * 2, *[answers(HARM, 3, 0)] * 2)
    seen: list[int] = []
    (found,) = fit(wishes, learning_rate=5.0, steps=3, on_log=lambda _, step: seen.append(step))
    assert found.weights["layer"] == (1.0, 0.0)  # all yes: as much as may be, and none of the no
    assert seen == [1, 2, 3]
    (further,) = fit(
        Calibration(*[answers(TASK, 4, 0)] * 2, *[answers(HARM, 0, 3)] * 2), most_task=2.5, most_safety=0.5
    )
    assert further.weights["layer"] == (2.5, 0.5)


def test_a_strong_pull_keeps_the_start_and_none_leaves_it():
    (held,) = fit(pull=1000.0, learning_rate=0.001)
    assert held.weights["layer"] == pytest.approx((0.8, 0.2), abs=0.002)  # two steps
    # Between: the gradient of the pull, (w − start) · pull, balances that of the loss.
    (between,) = fit(pull=1.0)
    alpha, _ = between.weights["layer"]
    slope = STRENGTH * (1 / (1 + math.exp(-STRENGTH * alpha)) - 0.75)
    # The step that is kept is the best without the pull: it overshoots by part of a step of 0.05, where
    # the curvature is below 2.
    assert slope + (alpha - 0.8) == pytest.approx(0, abs=0.1)
    assert math.log(3) / 2 < alpha < 0.8


def test_the_best_step_on_the_held_out_part_is_kept_and_patience_ends_the_fit():
    opposite = apart()._replace(task_validation=answers(TASK, 1, 0), safety_validation=answers(HARM, 1, 0))
    # What is held out wants a yes to everything: α up, β down. What is learned from wants the opposite.
    data = opposite._replace(task_fit=answers(TASK, 0, 4), safety_fit=answers(HARM, 0, 3))
    (found,) = fit(data, evaluate_every_steps=2, patience=3)
    assert (found.steps, found.steps_run) == (0, 6)
    assert found.weights["layer"] == (0.8, 0.2)
    assert found.losses.validation_final == found.losses.validation_start
    # On its way from α = 0.2 to 1 it passes what is best for the held-out part.
    passing = Calibration(answers(TASK, 4, 0), answers(TASK, 2, 1), *[answers(HARM, 1, 2)] * 2)
    (passed,) = fit(passing, start=(0.2, math.log(2) / 2), evaluate_every_steps=1, patience=2)
    assert passed.weights["layer"][0] == pytest.approx(math.log(2) / 2, abs=0.05)  # one step
    assert passed.steps_run == passed.steps + 2


def test_several_harm_weights_are_fitted_by_themselves_in_rising_order_or_from_each_other():
    together = fit(harm_weights=(3.0, 1.0, 3.0), steps=10)
    assert [found.harm_weight for found in together] == [1.0, 3.0]
    (alone,) = fit(harm_weights=(3.0,), steps=10)
    assert together[1].weights == alone.weights
    warm = fit(harm_weights=(1.0, 3.0), steps=10, warm_start=True)
    assert warm[0].weights == together[0].weights
    assert warm[1].weights != together[1].weights
    assert warm[1].losses.validation_start == together[1].losses.validation_start
    assert warm[1].losses.validation_final.task < together[1].losses.validation_final.task


def test_the_same_inputs_give_the_same_figures():
    one, two = (fit(task_batch=2, safety_batch=2, steps=20)[0] for _ in range(2))
    assert one._replace(wall_s=0) == two._replace(wall_s=0)
    assert fit(task_batch=2, safety_batch=2, steps=20, seed=1)[0].weights != one.weights


def test_what_it_cost_is_counted_in_tokens():
    (found,) = fit(steps=10, evaluate_every_steps=5, patience=5)
    assert found.trained_tokens == 10 * (4 + 3) * 2
    # Held out and the sample like it, 7 examples each of two tokens: at the start, twice, and at the end.
    assert found.measured_tokens == 5 * 7 * 2


def test_a_layer_that_the_safety_adapter_lacks_has_one_weight():
    (found,) = fit(safety={"elsewhere": update(HARM, NO)["layer"]}, start=(0.8, 0.0))
    alpha, beta = found.weights["layer"]
    assert (alpha, beta) == (pytest.approx(math.log(3) / 2, abs=CONVERGED), 0.0)


def test_the_model_is_left_as_it_was():
    model = OneLayer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(model=model, steps=2)
    assert not model.layer._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"start": (1.2, 0.2)},
            ConfigError,
            r"expected α in \[0, 1\] and β in \[0, 1.5\], got others in layer",
        ),
        ({"start": (0.8, -0.1)}, ConfigError, "got others in layer"),
        (
            {"calibration": apart()._replace(task_validation=[])},
            DataError,
            "examples in every part, got none in task_validation",
        ),
        (
            {"task": update(TASK, YES, math.inf), "start": (1.0, 0.0)},
            NonFiniteError,
            "expected finite losses",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        fit(**changes)


def test_a_loss_that_ceases_to_be_finite_ends_the_fit_with_its_step():
    class Failing(OneLayer):
        def forward(self, **inputs):
            found = super().forward(**inputs)
            return SimpleNamespace(logits=found.logits * float("nan")) if torch.is_grad_enabled() else found

    with pytest.raises(NonFiniteError, match=r"λ = 1, step 1: expected finite gradients.*losses nan"):
        fit(model=Failing())


def test_layers_that_are_no_linear_modules_are_refused_by_name():
    pair = LoraPair(torch.ones(1, 5), torch.ones(2, 1))
    odd = {"embedding": pair, "layer.10": pair, "layer.9": pair}
    with (
        pytest.raises(UnsupportedAdapterError, match=r"got embedding, layer.9, layer.10$"),
        weighed_layers(OneLayer(), odd, {}, dict.fromkeys(odd, (1.0, 0.0))),
    ):
        pass


def test_layers_of_another_shape_are_refused():
    wide = {"layer": LoraPair(torch.ones(1, 3), torch.ones(5, 1))}
    with (
        pytest.raises(MismatchError, match=r"layer \(adapter \(5, 3\), model \(5, 2\)\)"),
        weighed_layers(OneLayer(), wide, {}, {"layer": (1.0, 0.0)}),
    ):
        pass
