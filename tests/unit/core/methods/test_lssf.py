"""LSSF: the rank that keeps the entropy, and what is added at it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.core.methods.lssf import RETAINED, critical_rank


def by_hand(values: list[float]) -> int:
    """The definition, with every singular value at hand."""
    total = sum(value**2 for value in values)
    terms = [-(p := value**2 / total) * math.log(p) if value > 0 else 0.0 for value in values]
    return next(r for r in range(1, len(values) + 1) if sum(terms[:r]) >= RETAINED * sum(terms) - 1e-12)


def rank_of(values: list[float], known: int) -> int:
    squares = sum(value**2 for value in values)
    return critical_rank(torch.tensor(values[:known], dtype=torch.float64), squares, len(values))


@pytest.mark.parametrize("values", [[4.0, 2.0, 1.0, 0.5, 0.1], [1.0] * 10, [9.0, 1e-3, 1e-4], [2.0, 1.0]])
def test_the_rank_keeps_the_share_of_the_entropy(values: list[float]):
    assert rank_of(values, len(values)) == by_hand(values)


def test_one_direction_alone_is_rank_one():
    assert rank_of([3.0, 0.0, 0.0], 3) == 1
    assert critical_rank(torch.zeros(2, dtype=torch.float64), 0.0, 5) == 1


@given(st.lists(st.floats(1e-3, 1), min_size=2, max_size=12), st.integers(1, 12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_unknown_values_never_make_the_rank_too_small(values: list[float], known: int):
    values = sorted(values, reverse=True)
    known = min(known, len(values))
    assert min(by_hand(values), known) <= rank_of(values, known) <= known


def test_it_adds_the_projection_of_the_alignment(pair, merged, error_of):
    task = pair(0)
    difference = torch.randn(5, 7, generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -3, 7)
    u, s, _ = torch.linalg.svd(difference.double(), full_matrices=False)
    rank = by_hand(s.tolist())
    assert 1 < rank < 5
    projected = u[:, :rank] @ (u[:, :rank].T @ difference.double())
    update = merged("lssf", task, difference=difference, components=5, task_weight=0.9, safety_weight=0.5)
    assert update.rank == task.rank + rank
    assert error_of(update, 0.9 * task.delta(torch.float64) + 0.5 * projected) < 1e-6  # stored in fp32


def test_components_limit_the_rank(pair, merged):
    noise = torch.randn(5, 7, generator=torch.Generator().manual_seed(9))
    assert merged("lssf", pair(0), difference=noise, components=2).rank == 3 + 2
