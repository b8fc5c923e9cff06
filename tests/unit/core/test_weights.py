"""Updates folded into weights: against the formulas in float64, in full and in parts."""

from __future__ import annotations

import pytest
import torch

from safemerge.core.lora import LoraPair
from safemerge.core.weights import updated_weight
from safemerge.errors import MismatchError

# Sums of four products and a weight, all near 1 in size, in fp32: some roundings of 2⁻²⁴ each.
FP32 = {"rtol": 0, "atol": 5e-6}


def _inputs() -> tuple[torch.Tensor, LoraPair, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator)
    pair = LoraPair(torch.randn(4, 5, generator=generator), torch.randn(6, 4, generator=generator), 0.5)
    return weight, pair, torch.rand(6, generator=generator) + 0.5


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_the_whole_weight_and_blocks_of_rows_are_the_formula(dense: bool, dora: bool) -> None:
    weight, pair, magnitude = _inputs()
    expected = weight.double() + pair.delta(torch.float64)
    if dora:
        expected = magnitude.double()[:, None] * expected / expected.norm(dim=1, keepdim=True)
    update = pair.delta() if dense else pair
    got = updated_weight(weight, update, magnitude=magnitude if dora else None)
    torch.testing.assert_close(got.double(), expected, **FP32)
    rows = slice(2, 5)
    block = updated_weight(weight[rows], update, rows=rows, magnitude=magnitude if dora else None)
    torch.testing.assert_close(block.double(), expected[rows], **FP32)


def test_a_block_of_columns_is_the_formula_and_inputs_stay_as_they_are() -> None:
    weight, pair, _ = _inputs()
    before = [tensor.clone() for tensor in (weight, pair.lora_a, pair.lora_b)]
    columns = slice(1, 3)
    got = updated_weight(weight[:, columns], pair, columns=columns)
    expected = (weight.double() + pair.delta(torch.float64))[:, columns]
    torch.testing.assert_close(got.double(), expected, **FP32)
    assert all(map(torch.equal, before, (weight, pair.lora_a, pair.lora_b)))


def test_it_is_computed_in_the_dtype_of_the_weight() -> None:
    weight, pair, _ = _inputs()
    got = updated_weight(weight.double(), pair)
    # Some roundings of 2⁻⁵³; in fp32 it would be off by 1e-7.
    torch.testing.assert_close(got, weight.double() + pair.delta(torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dense", [False, True])
def test_another_shape_is_refused_rather_than_broadcast(dense: bool) -> None:
    weight, pair, _ = _inputs()
    with pytest.raises(MismatchError, match=r"expected a weight of shape \(6, 5\), got \(1, 5\)"):
        updated_weight(weight[:1], pair.delta() if dense else pair)
