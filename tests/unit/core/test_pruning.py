"""Thinning and joining of updates, on numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from safemerge.core.pruning import add_, drop_, join_by_sign_, trim_


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (1.0, [[1.0, -4.0, 0.5], [3.0, 0.0, -2.0]]),
        (0.5, [[0.0, -4.0, 0.0], [3.0, 0.0, -2.0]]),
        (0.4, [[0.0, -4.0, 0.0], [3.0, 0.0, 0.0]]),  # 2.4 entries: two
        (0.01, [[0.0, -4.0, 0.0], [0.0, 0.0, 0.0]]),  # at least one
    ],
)
def test_trimming_keeps_the_largest_magnitudes(density: float, kept: list[list[float]]):
    assert torch.equal(trim_(tensor([[1.0, -4.0, 0.5], [3.0, 0.0, -2.0]]), density), tensor(kept))


def test_trimming_keeps_all_of_equal_magnitude():
    assert torch.equal(trim_(tensor([[2.0, -2.0, 1.0, 2.0]]), 0.5), tensor([[2.0, -2.0, 0.0, 2.0]]))


def test_dropping_keeps_a_share_and_rescales_it():
    ones = torch.ones(200, 500)
    dropped = drop_(ones, 0.3, torch.Generator().manual_seed(0))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1.0).div(0.3).item()}
    # A share of 100 000 draws has a standard deviation of 0.0015.
    assert float((dropped != 0).float().mean()) == pytest.approx(0.3, abs=0.006)


def test_dropping_nothing_changes_nothing():
    update = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drop_(update.clone(), 1.0, torch.Generator().manual_seed(0)), update)


def test_adding_by_weight():
    assert torch.equal(add_((tensor([1.0, 2.0]), tensor([4.0, -8.0])), (0.5, 0.25)), tensor([1.5, -1.0]))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # both agree, voted down by the task, by the safety adapter, alone, a draw, nothing
        ((0.5, 0.5), [1.5, 4.0, -4.0, 2.0, 0.0, 0.0]),  # the paper's mean
        ((0.75, 0.25), [1.25, 4.0, -4.0, 2.0, 1.0, 0.0]),
        ((1.0, 1.0), [3.0, 8.0, -8.0, 4.0, 0.0, 0.0]),  # twice the mean: strengths add up
        ((1.0, -0.5), [0.0, 4.5, 3.0, 3.0, 1.5, 0.0]),
        ((0.0, 1.0), [2.0, -1.0, -4.0, 0.0, -1.0, 0.0]),
        ((0.0, 0.0), [0.0] * 6),
    ],
)
def test_joining_by_the_elected_sign(weights: tuple[float, float], expected: list[float]):
    task, safety = tensor([1.0, 4.0, 1.0, 2.0, 1.0, 0.0]), tensor([2.0, -1.0, -4.0, 0.0, -1.0, 0.0])
    torch.testing.assert_close(join_by_sign_((task, safety), weights), tensor(expected))
