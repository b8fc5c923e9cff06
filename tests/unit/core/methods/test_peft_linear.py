"""PEFT's sum of factors, against PEFT itself."""

from __future__ import annotations

import pytest
import torch

from safemerge.errors import MismatchError


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.7, 0.3), (1.2, -0.2), (-0.4, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.0, 4.0)])
def test_it_is_what_peft_gives(peft_merge, pair, merged, weights, scales):
    task, safety = pair(0, scale=scales[0]), pair(1, scale=scales[1])
    expected = peft_merge((task, safety), weights, combination_type="linear")
    update = merged("peft_linear", task, safety, task_weight=weights[0], safety_weight=weights[1])
    assert torch.equal(update.lora_a, expected.lora_a)
    assert torch.equal(update.lora_b, expected.lora_b)


def test_a_layer_not_chosen_is_what_peft_gives_of_one_adapter(peft_merge, pair, merged, error_of):
    task = pair(0, scale=2.0)
    expected = peft_merge((task,), (1.0,), combination_type="linear")
    update = merged("peft_linear", task, pair(1), kept=True)
    assert torch.equal(update.lora_a, expected.lora_a)
    assert torch.equal(update.lora_b, expected.lora_b)
    assert error_of(update, task.delta(torch.float64)) < 1e-6  # both factors times a rounded √2


def test_it_is_not_the_formula(pair, merged, error_of):
    task, safety = pair(0), pair(1)
    update = merged("peft_linear", task, safety)
    # The cross terms are √(αβ) = 0.4 of products as large as the updates themselves.
    assert 0.3 < error_of(update, 0.8 * task.delta(torch.float64) + 0.2 * safety.delta(torch.float64)) < 1.5


def test_it_is_stored_in_fp32(pair, merged):
    assert merged("peft_linear", *(pair(seed, dtype=torch.bfloat16) for seed in (0, 1))).lora_a.dtype == (
        torch.float32
    )


def test_updates_of_different_shape_are_refused(pair, merged):
    with pytest.raises(MismatchError, match=r"one shape, got \(5, 7\) and \(5, 6\)"):
        merged("peft_linear", pair(0), pair(1, d_in=6))


def test_different_ranks_are_refused(pair, merged):
    with pytest.raises(MismatchError, match=r"one rank .*r=3 in the task and r=4 in the safety"):
        merged("peft_linear", pair(0, rank=3), pair(1, rank=4))
