"""Subspace iteration, beside the whole decomposition in float64."""

from __future__ import annotations

import math

import pytest
import torch

from safemerge.core.directions import leading
from safemerge.errors import NonFiniteError

SHAPES = [(300, 200), (200, 300)]


def matrix(shape: tuple[int, int], decay: float, seed: int = 0) -> torch.Tensor:
    """Random directions with singular values i^-decay: 0 is flat, as noise is but for its edges."""
    generator = torch.Generator().manual_seed(seed)
    size = min(shape)
    u, v = (torch.linalg.qr(torch.randn(side, size, generator=generator).double()).Q for side in shape)
    return ((u * torch.arange(1, size + 1).double() ** -decay) @ v.T).float()


def distance(matrix: torch.Tensor, found: tuple[torch.Tensor, ...], rank: int) -> float:
    u, s, vh = found
    left_out = matrix.double() - (u[:, :rank] * s[:rank]) @ vh[:rank]
    return float(left_out.norm() / matrix.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_falling_singular_values_are_found_exactly(shape: tuple[int, int]):
    wide = matrix(shape, 1.0)
    found, exact = leading(wide, 6), torch.linalg.svd(wide.double(), full_matrices=False)
    # The sixteen directions of the sketch shrink the share of the rest by (σ_17 / σ_6)⁸ = 2e-4, squared in
    # the values; fp32 products leave 1e-6 of it.
    torch.testing.assert_close(found.s[:6], exact.S[:6], rtol=1e-5, atol=0)
    assert distance(wide, found, 6) == pytest.approx(distance(wide, exact, 6), rel=1e-6)
    ours, theirs = found.u[:, :6] @ found.u[:, :6].T, exact.U[:, :6] @ exact.U[:, :6].T
    assert float((ours - theirs).norm()) < 1e-2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [2, 4])
def test_alike_singular_values_cost_less_than_a_hundredth_of_the_error(shape, iterations: int):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.svd(noise.double(), full_matrices=False)
    for rank in (1, 6, 16):
        ours = distance(noise, leading(noise, rank, iterations=iterations), rank)
        best = distance(noise, exact, rank)
        assert best <= ours < 1.01 * best


def test_a_matrix_of_low_rank_is_found_whole():
    generator = torch.Generator().manual_seed(2)
    low = torch.randn(300, 5, generator=generator) @ torch.randn(5, 200, generator=generator)
    found = leading(low, 5, iterations=2)
    assert distance(low, found, 5) < 1e-6  # the rounding of fp32
    assert float(found.s[5]) < 1e-6 * float(found.s[0])


def test_directions_are_orthonormal_and_in_order():
    u, s, vh = leading(matrix((300, 200), 0.5), 8)
    assert bool((s[:-1] >= s[1:]).all())
    for gram in (u.T @ u, vh @ vh.T):
        # The basis passes through fp32 once.
        torch.testing.assert_close(gram, torch.eye(len(s)).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "count"), [((5, 7), 2), ((5, 7), 9), ((60, 40), 15), ((1, 1), 1)])
def test_small_matrices_are_decomposed_exactly(shape: tuple[int, int], count: int):
    wide = matrix(shape, 0.5)
    found, exact = leading(wide, count), torch.linalg.svd(wide.double(), full_matrices=False)
    assert torch.equal(found.s, exact.S)


def test_the_result_depends_on_the_matrix_alone():
    wide = matrix((300, 200), 0.5)
    state = torch.random.get_rng_state()
    first, second = leading(wide, 4), leading(wide, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_half_precision_is_widened():
    wide = matrix((300, 200), 1.0).bfloat16()
    assert torch.equal(leading(wide, 3).s, leading(wide.float(), 3).s)


@pytest.mark.parametrize("shape", [(300, 200), (5, 7)])
def test_zero_has_no_direction(shape: tuple[int, int]):
    pair = leading(torch.zeros(shape), 2).pair(2)
    assert pair.rank == 2
    assert not pair.delta().any()


def test_the_pair_is_the_approximation_in_fp32():
    wide = matrix((30, 20), 1.0)
    pair, found = leading(wide, 4).pair(4), torch.linalg.svd(wide.double(), full_matrices=False)
    expected = (found.U[:, :4] * found.S[:4]) @ found.Vh[:4]
    assert pair.lora_a.dtype == pair.lora_b.dtype == torch.float32
    assert float((pair.delta(torch.float64) - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("shape", [(300, 200), (5, 7)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(shape: tuple[int, int], bad: float):
    wide = torch.ones(shape)
    wide[2, 3] = bad
    with pytest.raises(NonFiniteError, match="expected finite numbers"):
        leading(wide, 2)
