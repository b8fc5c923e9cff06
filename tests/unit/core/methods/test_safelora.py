"""SafeLoRA, against the projection in full."""

from __future__ import annotations

import pytest
import torch

from safemerge.errors import MismatchError


@pytest.fixture
def difference() -> torch.Tensor:
    return 1e-3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("weight", [None, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_projection_in_full(pair, merged, error_of, difference, weight, dtype):
    task = pair(0, dtype=dtype)
    wide = difference.double()
    expected = (wide @ wide.T / wide.norm()) @ task.delta(torch.float64) * (weight or 1.0)
    update = merged("safelora", task, difference=difference, task_weight=weight)
    assert update.rank == task.rank
    assert error_of(update, expected) < 1e-6  # two products in fp32
    assert torch.equal(update.lora_a, task.lora_a.float())


def test_it_scales_with_the_alignment_and_vanishes_with_it(pair, merged, error_of, difference):
    task = pair(0)
    once = merged("safelora", task, difference=difference)
    assert error_of(merged("safelora", task, difference=8 * difference), 8 * once.delta(torch.float64)) < 1e-6
    gone = merged("safelora", task, difference=torch.zeros(5, 7))
    assert not gone.delta().any()


def test_a_layer_not_chosen_keeps_its_update(pair, merged, difference):
    task = pair(0)
    assert torch.equal(merged("safelora", task, difference=difference, kept=True).delta(), task.delta())


def test_an_alignment_of_another_shape_is_refused(pair, merged):
    with pytest.raises(MismatchError, match=r"one shape, got \(5, 7\) and \(7, 5\)"):
        merged("safelora", pair(0), difference=torch.ones(7, 5))
