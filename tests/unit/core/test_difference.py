"""Two updates beside each other: against the same from full matrices in float64."""

from __future__ import annotations

import pytest
import torch

from safemerge.core.difference import difference_norm, in_coordinates, inner_product
from safemerge.core.lora import LoraPair
from safemerge.errors import MismatchError


def _pair(seed: int, rank: int, scale: float, shape: tuple[int, int] = (7, 5)) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    d_out, d_in = shape
    return LoraPair(
        torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator), scale
    )


@pytest.mark.parametrize(("ranks", "scales"), [((2, 3), (2.0, -0.5)), ((6, 1), (1.0, 1.0))])
def test_both_are_those_of_the_full_matrices(ranks: tuple[int, int], scales: tuple[float, float]) -> None:
    first, second = (_pair(seed, *given) for seed, given in enumerate(zip(ranks, scales, strict=True)))
    dense = [pair.delta(torch.float64) for pair in (first, second)]
    # Sums of some dozen products in float64: a few roundings of 1e-16.
    assert inner_product(first, second) == pytest.approx(float((dense[0] * dense[1]).sum()), rel=1e-12)
    assert difference_norm(first, second) == pytest.approx(float((dense[0] - dense[1]).norm()), rel=1e-12)


def test_a_small_difference_keeps_its_figures() -> None:
    first = _pair(0, 3, 2.0)
    nudged = first.lora_b.to(torch.float64)
    nudged[0, 0] += 1e-9
    second = LoraPair(first.lora_a.to(torch.float64), nudged, 2.0)
    expected = 2.0 * 1e-9 * float(first.lora_a[0].to(torch.float64).norm())
    # The norms are of size 10, so that float64 resolves 1e-15 of them: 1e-6 of the difference.
    assert difference_norm(first, second) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ranks", [(2, 3), (4, 3), (1, 1)])
def test_in_coordinates_lengths_angles_and_singular_values_stay(ranks: tuple[int, int]) -> None:
    pairs = [
        _pair(seed, rank, scale) for seed, (rank, scale) in enumerate(zip(ranks, (2.0, -0.5), strict=True))
    ]
    small = in_coordinates(pairs)
    assert [pair.rank for pair in small] == list(ranks)
    assert small[0].shape == (min(7, sum(ranks)), min(5, sum(ranks)))
    # float64 roundings of QR.
    assert inner_product(*small) == pytest.approx(inner_product(*pairs), rel=1e-11)
    assert difference_norm(*small) == pytest.approx(difference_norm(*pairs), rel=1e-12)
    for pair, other in zip(pairs, small, strict=True):
        expected = torch.linalg.svdvals(pair.delta(torch.float64))[: pair.rank]
        found = torch.linalg.svdvals(other.delta(torch.float64))[: pair.rank]
        assert torch.allclose(found, expected, rtol=1e-11)


@pytest.mark.parametrize("of", [inner_product, difference_norm, lambda *pairs: in_coordinates(pairs)])
def test_updates_of_other_shapes_are_refused(of) -> None:
    with pytest.raises(MismatchError, match=r"expected updates of one shape, got \(7, 5\) and \(5, 5\)"):
        of(_pair(0, 2, 1.0), _pair(0, 2, 1.0, (5, 5)))
