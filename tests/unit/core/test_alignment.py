"""The alignment difference: widened before it is subtracted, block by block."""

from __future__ import annotations

import pytest
import torch

from safemerge.core import alignment
from safemerge.core.alignment import alignment_difference, difference_blocks
from safemerge.errors import MismatchError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_widened_before_they_are_subtracted(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    unaligned = torch.randn(6, 5, generator=generator).to(dtype)
    aligned = (unaligned.float() + 0.01 * torch.randn(6, 5, generator=generator)).to(dtype)
    difference = alignment_difference(aligned, unaligned)
    assert difference.dtype == torch.float32
    assert torch.equal(difference, aligned.float() - unaligned.float())


def test_float64_weights_are_subtracted_in_float64():
    aligned = torch.tensor([[1 + 2.0**-40]], dtype=torch.float64)
    assert alignment_difference(aligned, torch.ones(1, 1)).item() == 2.0**-40


def test_blocks_do_not_show_in_the_result(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    whole = alignment_difference(*pair)
    monkeypatch.setattr(alignment, "_BLOCK_ELEMENTS", 10)  # two rows at a time, and one left over
    assert torch.equal(alignment_difference(*pair), whole)


@pytest.mark.parametrize("transposed", [True, False])
def test_blocks_are_whole_rows_or_columns_in_the_order_of_storage(
    monkeypatch: pytest.MonkeyPatch, transposed: bool
):
    monkeypatch.setattr(alignment, "_BLOCK_ELEMENTS", 10)
    aligned = torch.arange(35.0).reshape(7, 5)
    if transposed:
        aligned = aligned.T
    seen = torch.zeros_like(aligned)
    shapes = []
    for rows, columns, values in difference_blocks(aligned, torch.ones_like(aligned)):
        seen[rows, columns] += values
        shapes.append(tuple(values.shape))
    assert torch.equal(seen, aligned - 1)
    assert shapes == ([(5, 2)] * 3 + [(5, 1)] if transposed else [(2, 5)] * 3 + [(1, 5)])


def test_rows_longer_than_a_block_and_empty_matrices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alignment, "_BLOCK_ELEMENTS", 3)
    pair = torch.ones(2, 5), torch.zeros(2, 5)
    assert [tuple(block.values.shape) for block in difference_blocks(*pair)] == [(1, 5)] * 2
    assert alignment_difference(torch.ones(0, 5), torch.ones(0, 5)).shape == (0, 5)
    assert alignment_difference(torch.ones(5, 0), torch.ones(5, 0)).shape == (5, 0)


def test_weights_are_not_changed():
    pair = torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 2)
    for block in difference_blocks(*pair):
        block.values.fill_(7)
    assert all(torch.equal(weight.float(), torch.ones(3, 2)) for weight in pair)


def test_the_result_has_memory_of_its_own():
    aligned, unaligned = torch.ones(2, 2), torch.zeros(2, 2)
    alignment_difference(aligned, unaligned).zero_()
    assert torch.equal(aligned, torch.ones(2, 2))


@pytest.mark.parametrize("other", [torch.ones(3, 2), torch.ones(2)])
def test_different_shapes_are_refused(other: torch.Tensor):
    with pytest.raises(
        MismatchError, match=r"one shape, got \(2, 2\) in the aligned and .* in the unaligned"
    ):
        alignment_difference(torch.ones(2, 2), other)


def test_vectors_are_refused():
    with pytest.raises(MismatchError, match="expected two matrices"):
        alignment_difference(torch.ones(2), torch.ones(2))


def test_quantised_weights_are_refused():
    with pytest.raises(MismatchError, match=r"expected float weights, got torch.int8 in the aligned"):
        alignment_difference(torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 2))
