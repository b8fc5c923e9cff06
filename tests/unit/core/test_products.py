"""Products in fp32: the same numbers, whichever library makes them."""

from __future__ import annotations

import pytest
import torch

from safemerge.core import products
from safemerge.core.products import add_product


@pytest.mark.parametrize("rows", [8, 64])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_is_added_to_what_is_there(
    monkeypatch: pytest.MonkeyPatch, rows: int, onednn: bool, transposed: bool
):
    if not onednn:
        monkeypatch.setattr(products, "_ONEDNN_LINEAR", None)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, 90, generator=generator)[:, 20:60]
    right = torch.randn(40, 30, generator=generator)
    right = right.T.contiguous().T if transposed else right
    total = torch.randn(rows, 50, generator=generator)
    expected = total.double()
    expected[:, 10:40] += left.double() @ right.double()
    add_product(total[:, 10:40], left, right)
    # Sums of 40 products of fp32 numbers near 1: unit roundoff 6e-8 times their norm of 6, a few times over.
    assert float((total - expected).abs().max()) < 5e-6


def test_onednn_keeps_what_detection_of_nan_and_tiny_weights_rest_on():
    spoilt = torch.zeros(40, 30)
    spoilt[3, 5] = torch.nan
    total = torch.zeros(64, 30)
    add_product(total, torch.zeros(64, 40), spoilt)
    assert torch.isnan(total).sum() == 64
    total = torch.zeros(64, 30)
    add_product(total, torch.ones(64, 40), torch.full((40, 30), 1e-40))  # below the normal numbers of fp32
    assert total[0, 0].item() == pytest.approx(40e-40, rel=1e-4)
