"""Magnitude pruning, against sorting."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("density", [1.0, 0.6, 0.2])
def test_it_adds_the_largest_entries_of_both(pair, merged, error_of, density: float):
    task, safety = pair(0), pair(1, rank=4)
    expected = torch.zeros(5, 7, dtype=torch.float64)
    for weight, lora in ((0.8, task), (0.2, safety)):
        delta = lora.delta(torch.float64).flatten()
        largest = delta.abs().argsort(descending=True)[: round(density * 35)]
        expected.view(-1)[largest] += weight * delta[largest]
    update = merged("magnitude_prune", task, safety, density=density)
    assert error_of(update, expected) < 1e-6  # products of fp32


def test_a_layer_not_chosen_keeps_its_update_whole(pair, merged):
    task = pair(0)
    update = merged("magnitude_prune", task, pair(1), density=0.2, kept=True)
    assert torch.equal(update.delta(), task.delta())
