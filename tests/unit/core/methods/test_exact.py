"""The paper's formula, against the dense sum."""

from __future__ import annotations

import pytest
import torch

from safemerge.errors import MismatchError

FP32 = 1e-6  # one rounding of each entry to fp32, then products of a few of them


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.7, 0.3), (1.0, -0.5), (-0.3, 1.3), (0.0, 1.0)])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.37, 1.9)])
def test_it_is_the_weighted_sum_of_updates(pair, merged, error_of, weights, ranks, scales):
    task, safety = pair(0, ranks[0], scales[0]), pair(1, ranks[1], scales[1])
    update = merged("exact", task, safety, task_weight=weights[0], safety_weight=weights[1])
    assert update.rank == sum(ranks)
    assert update.scale == 1
    expected = weights[0] * task.delta(torch.float64) + weights[1] * safety.delta(torch.float64)
    assert error_of(update, expected) < FP32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_is_stored_in_fp32(pair, merged, error_of, dtype):
    task, safety = pair(0, dtype=dtype), pair(1, dtype=dtype)
    update = merged("exact", task, safety)
    assert update.lora_a.dtype == update.lora_b.dtype == torch.float32
    expected = 0.8 * task.delta(torch.float64) + 0.2 * safety.delta(torch.float64)
    assert error_of(update, expected) < FP32


def test_a_layer_not_chosen_keeps_its_update(pair, merged):
    task = pair(0, scale=2.0)
    assert torch.equal(merged("exact", task, pair(1), kept=True).delta(), task.delta())


def test_updates_of_different_shape_are_refused(pair, merged):
    with pytest.raises(MismatchError, match=r"one shape, got \(5, 7\) and \(5, 6\)"):
        merged("exact", pair(0), pair(1, d_in=6))
