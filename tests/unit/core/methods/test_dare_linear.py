"""DARE of the updates: its expectation, its variance and its seed."""

from __future__ import annotations

import torch

from safemerge.core.methods.base import Layer
from safemerge.core.methods.dare_linear import merge
from safemerge.core.options import MergeOptions

METHOD = "dare_linear"


def test_dropping_nothing_it_is_the_weighted_sum(pair, merged, error_of):
    task, safety = pair(0), pair(1, rank=4)
    expected = 0.8 * task.delta(torch.float64) + 0.2 * safety.delta(torch.float64)
    assert error_of(merged(METHOD, task, safety, density=1.0), expected) < 1e-6  # products of fp32


def test_its_expectation_is_the_weighted_sum(pair, merged):
    task, safety = pair(0), pair(1)
    density, draws = 0.6, 3000
    generator = torch.Generator().manual_seed(0)
    layer, options = Layer(task, safety), MergeOptions(method=METHOD, density=density)
    drawn = torch.stack([merge(layer, options, generator) for _ in range(draws)])
    parts = 0.8 * task.delta(), (1 - 0.8) * safety.delta()
    # An entry kept with probability p and divided by p has variance x²(1 − p)/p.
    deviation = (sum(part**2 for part in parts) * (1 - density) / density).sqrt()
    assert float(((drawn.mean(0) - sum(parts)) / (deviation / draws**0.5)).abs().max()) < 4.5
    assert torch.allclose(drawn.std(0), deviation, rtol=0.1)


def test_entries_of_both_are_dropped_apart(pair, merged):
    task, safety = pair(0), pair(1)
    update = merged(METHOD, task, safety, density=0.5)
    parts = 2 * 0.8 * task.delta(), 2 * (1 - 0.8) * safety.delta()
    cases = torch.stack([torch.zeros(5, 7), parts[0], parts[1], parts[0] + parts[1]])
    nearest = (cases - update).abs().min(0)
    assert float(nearest.values.max()) < 1e-5
    assert set(nearest.indices.flatten().tolist()) == {0, 1, 2, 3}


def test_it_repeats_with_its_seed_and_draws_from_no_other_source(pair, merged):
    state = torch.random.get_rng_state()
    first, second, other = (merged(METHOD, pair(0), pair(1), density=0.5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_layer_not_chosen_keeps_its_update_whole(pair, merged):
    task = pair(0)
    assert torch.equal(merged(METHOD, task, pair(1), density=0.2, kept=True).delta(), task.delta())
