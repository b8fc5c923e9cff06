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
