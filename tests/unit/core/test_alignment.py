"""The alignment difference: widened before it is subtracted, block by block."""

from __future__ import annotations

import pytest
import torch

from safemerge.core import alignment
from safemerge.core.alignment import alignment_difference
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
