"""Updates at a smaller rank, against the dense singular value decomposition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.core.compress import compressed, padded
from safemerge.core.lora import LoraPair

# The pair is stored in fp32: each entry of both factors is rounded once.
FP32 = 1e-6
quick = settings(max_examples=40, deadline=None, derandomize=True)


def pair(seed: int, rank: int = 3, d_out: int = 6, d_in: int = 8, scale: float = 0.7) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    return LoraPair(
        torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator), scale
    )


def distance(got: LoraPair, update: torch.Tensor) -> float:
    return float((got.delta(torch.float64) - update).norm() / update.norm())


def best(update: torch.Tensor, rank: int) -> float:
    """Smallest relative error that any matrix of that rank has (Eckart and Young)."""
    values = torch.linalg.svdvals(update)
    return float(values[rank:].norm() / values.norm())


def test_padding_adds_zeros_and_no_update():
    task = pair(0)
    wide = padded(task, 8)
    assert wide.rank == 8
    assert torch.equal(wide.lora_a[:3], task.lora_a)
    assert not wide.lora_a[3:].any()
    assert not wide.lora_b[:, 3:].any()
    assert torch.equal(wide.delta(torch.float64), task.delta(torch.float64))
    assert padded(task, 3) is task


@given(
    seed=st.integers(0, 999),
    own=st.integers(1, 12),
    rank=st.integers(1, 12),
    d_out=st.integers(1, 9),
    d_in=st.integers(1, 9),
)
@quick
def test_factors_are_cut_as_well_as_the_dense_matrix(seed, own, rank, d_out, d_in):
    update = pair(seed, own, d_out, d_in)
    dense = update.delta(torch.float64)
    got, error = compressed(update, rank=rank)
    assert got.rank == min(rank, own, d_out, d_in)
    assert got.scale == 1
    assert got.lora_a.dtype == got.lora_b.dtype == torch.float32
    assert error == pytest.approx(best(dense, rank), abs=1e-7)  # √ of the rounding of float64
    assert distance(got, dense) == pytest.approx(error, abs=FP32)


@pytest.mark.parametrize("max_error", [0.05, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("dense", [False, True])
def test_max_error_takes_the_smallest_rank_that_is_good_enough(max_error: float, dense: bool):
    update = pair(0, rank=6)
    whole = update.delta(torch.float64)
    got, error = compressed(whole if dense else update, max_error=max_error)
    assert error <= max_error
    assert error == pytest.approx(best(whole, got.rank), abs=1e-7)
    assert got.rank == 1 or best(whole, got.rank - 1) > max_error


@pytest.mark.parametrize("choice", [{}, {"max_error": 0.0}])
def test_no_error_allowed_takes_the_rank_that_the_update_has(choice: dict[str, float]):
    task, twice = pair(0), torch.eye(3)[[0, 1, 2, 0, 1]]  # five columns, three of them different
    update = LoraPair(twice @ task.lora_a, task.lora_b @ twice.T, task.scale)
    got, error = compressed(update, **choice)
    assert got.rank == 3
    assert error < 1e-7
    assert distance(got, update.delta(torch.float64)) < FP32


@pytest.mark.parametrize("choice", [{"rank": 2}, {"max_error": 0.1}, {}])
@pytest.mark.parametrize("dense", [False, True])
def test_zero_stays_zero(choice: dict[str, float], dense: bool):
    update = LoraPair(torch.randn(3, 8), torch.zeros(6, 3))
    got, error = compressed(update.delta() if dense else update, **choice)
    assert not got.delta().any()
    assert error == 0


def test_tiny_and_huge_factors_keep_their_figures():
    task = pair(0)
    update = LoraPair(task.lora_a * 1e-25, task.lora_b * 1e20, 1.0)
    got, error = compressed(update, rank=2)
    dense = update.delta(torch.float64)
    assert error == pytest.approx(best(dense, 2), abs=1e-7)
    assert distance(got, dense) == pytest.approx(error, abs=FP32)


def test_strides_and_half_precision_do_not_matter():
    task = pair(0)
    turned = LoraPair(task.lora_a.T.contiguous().T, task.lora_b.T.contiguous().T, task.scale)
    for update in (task, turned):
        assert torch.allclose(compressed(update, rank=2)[0].delta(), compressed(task, rank=2)[0].delta())
    half = LoraPair(task.lora_a.bfloat16(), task.lora_b.bfloat16(), task.scale)
    assert compressed(half, rank=2)[1] == pytest.approx(best(half.delta(torch.float64), 2), abs=1e-7)


def test_inputs_are_not_changed():
    task = pair(0)
    dense = task.delta()
    before = [tensor.clone() for tensor in (task.lora_a, task.lora_b, dense)]
    compressed(task, rank=1)
    compressed(dense, rank=1)
    after = (task.lora_a, task.lora_b, dense)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def large(decay: float) -> torch.Tensor:
    """A (240, 300) matrix with singular values i^-decay."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(side, 240, generator=generator).double()).Q for side in (240, 300))
    return ((u * torch.arange(1, 241).double() ** -decay) @ v.T).float()


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rank", [1, 16])
def test_a_large_matrix_in_full_is_cut_nearly_as_well_as_can_be(decay: float, rank: int, monkeypatch):
    monkeypatch.setattr("safemerge.core.compress._BLOCK_ELEMENTS", 10_000)  # in eight blocks of rows
    update = large(decay)
    got, error = compressed(update, rank=rank)
    assert got.rank == rank
    assert distance(got, update.double()) == pytest.approx(error, abs=FP32)  # the error told is the error
    assert best(update.double(), rank) <= error + 1e-9
    assert error <= 1.01 * best(update.double(), rank) + FP32


@pytest.mark.parametrize(("decay", "max_error"), [(2.0, 0.01), (1.0, 0.15), (0.5, 0.3)])
def test_more_directions_are_looked_for_until_the_error_is_small_enough(decay: float, max_error: float):
    update = large(decay)
    got, error = compressed(update, max_error=max_error)
    assert distance(got, update.double()) == pytest.approx(error, abs=FP32)
    assert error <= max_error
    values = torch.linalg.svdvals(update.double())
    smallest = next(rank for rank in range(240) if float(values[rank:].norm() / values.norm()) <= max_error)
    assert smallest <= got.rank <= smallest + 2  # the last directions of a sketch are not the very best
