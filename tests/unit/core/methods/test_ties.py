"""TIES, against its three steps entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from safemerge.errors import MismatchError


def by_hand(task: torch.Tensor, safety: torch.Tensor, weights: tuple[float, float], density: float):
    """The definition, one entry after the other, in Python's floats."""
    kept = round(density * task.numel())
    cuts = [sorted(map(abs, update.flatten().tolist()))[-kept] for update in (task, safety)]
    joined = torch.zeros_like(task)
    for row in range(task.shape[0]):
        for column in range(task.shape[1]):
            values = [float(update[row, column]) for update in (task, safety)]
            values = [value if abs(value) >= cut else 0.0 for value, cut in zip(values, cuts, strict=True)]
            parts = [weight * value for weight, value in zip(weights, values, strict=True)]
            sign = math.copysign(1, sum(parts)) if sum(parts) else 0
            ours = [i for i in (0, 1) if parts[i] * sign > 0]
            if ours:
                mean = sum(parts[i] for i in ours) / sum(abs(weights[i]) for i in ours)
                joined[row, column] = mean * sum(map(abs, weights))
    return joined


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.5, 0.5), (1.0, 0.5), (1.0, -0.5)])
@pytest.mark.parametrize("density", [1.0, 0.6, 0.2])
def test_it_trims_elects_and_joins(pair, merged, error_of, weights, density: float):
    task, safety = pair(0), pair(1, rank=4, scale=0.9)
    update = merged("ties", task, safety, density=density, task_weight=weights[0], safety_weight=weights[1])
    expected = by_hand(task.delta(torch.float64), safety.delta(torch.float64), weights, density)
    assert error_of(update, expected) < 1e-6  # products of fp32
    assert update.dtype == torch.float32


def test_updates_that_agree_are_added_as_exact_does(pair, merged, error_of):
    task = pair(0)
    expected = merged("exact", task, task).delta(torch.float64)
    assert error_of(merged("ties", task, task, density=1.0), expected) < 1e-6


def test_a_layer_not_chosen_keeps_its_update_whole(pair, merged):
    task = pair(0)
    assert torch.equal(merged("ties", task, pair(1), density=0.2, kept=True).delta(), task.delta())


def test_inputs_are_not_changed(pair, merged):
    task, safety = pair(0, scale=1.0), pair(1, scale=1.0)
    before = [factor.clone() for lora in (task, safety) for factor in (lora.lora_a, lora.lora_b)]
    merged("ties", task, safety, density=0.4)
    after = [factor for lora in (task, safety) for factor in (lora.lora_a, lora.lora_b)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_updates_of_different_shape_are_refused(pair, merged):
    with pytest.raises(MismatchError, match=r"one shape, got \(5, 7\) and \(5, 6\)"):
        merged("ties", pair(0), pair(1, d_in=6), density=0.5)
