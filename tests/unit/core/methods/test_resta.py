"""RESTA: two strengths, every layer."""

from __future__ import annotations

import pytest
import torch

from safemerge.core import methods


@pytest.mark.parametrize(
    ("given", "weights"),
    [({}, (1.0, 0.5)), ({"safety_weight": 0.3}, (1.0, 0.3)), ({"task_weight": 0.9}, (0.9, 0.5))],
)
def test_it_adds_the_safety_update(pair, merged, error_of, given: dict[str, float], weights):
    task, safety = pair(0), pair(1, rank=4)
    update = merged("resta", task, safety, **given)
    expected = weights[0] * task.delta(torch.float64) + weights[1] * safety.delta(torch.float64)
    assert update.rank == 7
    assert error_of(update, expected) < 1e-6  # one rounding of each factor to fp32


def test_it_changes_every_layer_that_both_have():
    resta = methods.get("resta")
    assert not resta.chooses
    assert resta.needs_safety
