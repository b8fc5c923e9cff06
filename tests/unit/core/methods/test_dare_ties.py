"""DARE and then TIES: the draws of the one, the joining of the other."""

from __future__ import annotations

import torch

from safemerge.core.pruning import drop_, join_by_sign_

METHOD = "dare_ties"


def test_dropping_nothing_it_is_ties_that_trims_nothing(pair, merged):
    task, safety = pair(0), pair(1)
    assert torch.equal(merged(METHOD, task, safety, density=1.0), merged("ties", task, safety, density=1.0))


def test_what_is_left_is_joined_by_sign(pair, merged):
    task, safety = pair(0), pair(1)
    generator = torch.Generator().manual_seed(7)
    left = tuple(drop_(update.delta(), 0.5, generator) for update in (task, safety))
    expected = join_by_sign_(left, (0.8, 1 - 0.8))
    assert torch.equal(merged(METHOD, task, safety, density=0.5, seed=7), expected)
    assert 0 < int((expected == 0).sum()) < expected.numel()


def test_a_layer_not_chosen_keeps_its_update_whole(pair, merged):
    task = pair(0)
    assert torch.equal(merged(METHOD, task, pair(1), density=0.2, kept=True).delta(), task.delta())
