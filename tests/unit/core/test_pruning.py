"""Thinning and joining of updates, on numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from safemerge.core.pruning import add_, drop_, join_by_sign_, nth_magnitude, trim_


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


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.integers(1, 40),
    st.integers(1, 4),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_nth_magnitude_is_that_of_sorting(values: list[float], n: int, width: int):
    n = min(n, len(values))
    padded = values + [0.0] * (-len(values) % width)
    found = nth_magnitude(tensor(padded).reshape(-1, width), n)
    assert float(found) == float(tensor(values).abs().sort(descending=True).values[n - 1])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch):
    def worked() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        update, other = (torch.randn(9, 7, generator=generator) for _ in range(2))
        return [trim_(update.clone(), 0.3), join_by_sign_((update.clone(), other), (0.8, 0.2))]

    whole = worked()
    monkeypatch.setattr("safemerge.core.pruning._BLOCK_ELEMENTS", 15)  # two rows at a time, one left over
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(worked(), whole, strict=True))


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


def test_entries_whose_squares_underflow_are_joined_too():
    tiny = tensor([[1e-30, -1e-30]])
    joined = join_by_sign_((tiny.clone(), tiny.clone()), (0.5, 0.5))
    torch.testing.assert_close(joined, tiny, rtol=1e-6, atol=0)
