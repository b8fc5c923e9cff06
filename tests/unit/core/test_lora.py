"""LoRA pairs: shapes, the update they stand for, and its norm without building it."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from safemerge.core.lora import LoraPair, column_factor
from safemerge.errors import MismatchError


def test_delta_is_scale_times_b_times_a():
    pair = LoraPair(tensor([[1.0, 2.0]]), tensor([[3.0], [4.0], [0.0]]), scale=2.0)
    assert pair.shape == (3, 2)
    assert pair.rank == 1
    assert torch.equal(pair.delta(), tensor([[6.0, 12.0], [8.0, 16.0], [0.0, 0.0]]))
    assert pair.delta(torch.float64).dtype == torch.float64


def test_norm_of_a_hand_worked_update():
    # ΔW = 2 · [3, 4]ᵀ[0, 5]: norm 2 · 5 · 5
    assert LoraPair(tensor([[0.0, 5.0]]), tensor([[3.0], [4.0]]), -2.0).norm() == pytest.approx(50, rel=1e-15)


@pytest.mark.parametrize(("rank", "d_out", "d_in"), [(1, 5, 7), (4, 7, 5), (9, 4, 6), (3, 3, 3)])
def test_norm_equals_that_of_the_update_in_full(rank: int, d_out: int, d_in: int):
    generator = torch.Generator().manual_seed(rank)
    pair = LoraPair(
        torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator), 0.3
    )
    # Both are float64 computations of the same number.
    assert pair.norm() == pytest.approx(float(pair.delta(torch.float64).norm()), rel=1e-13)


def test_an_update_that_cancels_has_norm_zero():
    same = tensor([[1.0, 2.0, 3.0]])
    pair = LoraPair(torch.cat((same, same)), tensor([[1.0, -1.0], [5.0, -5.0]]))
    assert pair.norm() < 1e-14  # rounding of float64 beside factors of size 1


def test_column_factor_has_the_gram_matrix_of_the_update():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(5, 3, generator=generator)
    factor, update = column_factor(a, b), b.double() @ a.double()
    assert factor.shape == (5, 3)
    torch.testing.assert_close(factor @ factor.T, update @ update.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("lora_a", "lora_b"),
    [
        (torch.ones(2, 3), torch.ones(4, 3)),
        (torch.ones(3), torch.ones(4, 3)),
        (torch.ones(2, 3, 1), torch.ones(4, 2)),
        (torch.ones(0, 3), torch.ones(4, 0)),
    ],
)
def test_factors_that_have_no_product_are_refused(lora_a: torch.Tensor, lora_b: torch.Tensor):
    with pytest.raises(
        MismatchError, match=r"expected lora_a \(r, d_in\) and lora_b \(d_out, r\), got lora_a"
    ):
        LoraPair(lora_a, lora_b)


def test_integer_factors_are_refused():
    with pytest.raises(MismatchError, match=r"expected float tensors, got .*torch.int64"):
        LoraPair(torch.ones(2, 3, dtype=torch.int64), torch.ones(4, 2))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale: float):
    with pytest.raises(MismatchError, match=f"expected a finite number, got {scale}"):
        LoraPair(torch.ones(2, 3), torch.ones(4, 2), scale)
