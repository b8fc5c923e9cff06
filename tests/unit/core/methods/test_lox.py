"""LoX, against the whole decomposition of V."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize(("components", "rank"), [(1, 1), (3, 3), (9, 5)])
@pytest.mark.parametrize("weights", [None, (0.9, 0.5)])
def test_it_adds_the_leading_directions_of_the_alignment(
    pair, merged, error_of, components: int, rank: int, weights
):
    task = pair(0)
    difference = 1e-3 * torch.randn(5, 7, generator=torch.Generator().manual_seed(9))
    u, s, vh = torch.linalg.svd(difference.double(), full_matrices=False)
    alpha, gamma = weights or (1.0, 1.0)
    given = {} if weights is None else {"task_weight": alpha, "safety_weight": gamma}
    update = merged("lox", task, difference=difference, components=components, **given)
    strongest = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert update.rank == task.rank + rank
    assert error_of(update, alpha * task.delta(torch.float64) + gamma * strongest) < 1e-6  # stored in fp32
    added = update.delta(torch.float64) - alpha * task.delta(torch.float64)
    assert error_of(added, gamma * strongest) < 1e-2  # a thousandth of what it was added to


def test_no_alignment_adds_nothing(pair, merged):
    task = pair(0)
    update = merged("lox", task, difference=torch.zeros(5, 7), components=2)
    assert torch.allclose(update.delta(), task.delta())
