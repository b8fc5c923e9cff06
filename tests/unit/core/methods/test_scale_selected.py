"""The control: the task's update made smaller."""

from __future__ import annotations

import pytest
import torch

from safemerge.core.methods.base import scaled


def test_it_multiplies_the_update(pair, merged, error_of):
    task = pair(0, scale=0.37)
    update = merged("scale_selected", task, task_weight=0.3)
    assert error_of(update, 0.3 * task.delta(torch.float64)) < 1e-6  # one rounding of B to fp32


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_folding_a_power_of_two_is_exact(pair, scale: float):
    task = pair(0, scale=scale)
    assert torch.equal(scaled(task).delta(), task.delta())
