"""The projected cosine against hand-worked numbers, a dense float64 oracle and its invariances."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from safemerge.core import similarity
from safemerge.core.lora import column_factor
from safemerge.core.similarity import projected_cosine, projected_cosines, whole
from safemerge.errors import DegenerateLayerError, MismatchError, NonFiniteError

# ρ is a ratio of sums of fp32 products (unit roundoff 6e-8); sums of up to 40 terms grow it little.
FP32 = 2e-6


def dense_cosine(lora_a: Tensor, lora_b: Tensor, alignment: Tensor) -> float:
    """The definition, with the projection built in full, in float64."""
    update, v = lora_b.double() @ lora_a.double(), alignment.double()
    projected = (v @ v.T / v.norm()) @ update
    return float((projected * update).sum() / (projected.norm() * update.norm()))


def random_layer(seed: int, rank: int, d_out: int, d_in: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, d_in, generator=generator),
        torch.randn(d_out, rank, generator=generator),
        torch.randn(d_out, d_in, generator=generator),
    )


layers = st.builds(
    random_layer,
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(1, 20),
)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def test_the_docstring_is_right():
    assert doctest.testmod(similarity) == (0, 3)


def test_hand_worked_cosine():
    # V Vᵀ = diag(4, 1), W = [1, 1]ᵀ[1]: cos of (4, 1) with (1, 1) is 5 / (√17 √2).
    rho = projected_cosine(tensor([[1.0]]), tensor([[1.0], [1.0]]), tensor([[2.0], [0.0]]))
    assert rho == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    rho = projected_cosine(tensor([[1.0, 0.0]]), tensor([[1.0], [1.0]]), tensor([[2.0, 0.0], [0.0, 1.0]]))
    assert rho == pytest.approx(5 / math.sqrt(34), rel=1e-6)


@given(layers)
@quick
def test_equals_the_definition(layer: tuple[Tensor, Tensor, Tensor]):
    assert projected_cosine(*layer) == pytest.approx(dense_cosine(*layer), abs=FP32)


@given(layers)
@quick
def test_lies_between_zero_and_one(layer: tuple[Tensor, Tensor, Tensor]):
    assert 0 <= projected_cosine(*layer) <= 1


def test_differences_too_small_to_square_in_fp32_still_count():
    assert projected_cosine(torch.ones(1, 1), torch.ones(2, 1), torch.full((2, 1), 1e-40)) == pytest.approx(1)


def test_rounding_never_lifts_it_above_one():
    # An update inside an isotropic alignment has ρ = 1 up to rounding.
    for seed in range(30):
        a, b, _ = random_layer(seed, 2, 6, 6)
        q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))).Q
        rho = projected_cosine(a, b, q)
        assert rho <= 1
        assert rho == pytest.approx(1, abs=FP32)


@given(layers, st.integers(-25, 25), st.integers(-25, 25), st.integers(-25, 25))
@quick
def test_scaling_any_factor_changes_nothing(
    layer: tuple[Tensor, Tensor, Tensor], power_a: int, power_b: int, power_v: int
):
    a, b, v = layer
    scaled = projected_cosine(a * 10.0**power_a, b * 10.0**power_b, v * 10.0**power_v)
    assert scaled == pytest.approx(projected_cosine(a, b, v), abs=FP32)


@given(layers, st.integers(0, 10_000))
@quick
def test_mixing_the_factors_of_one_update_changes_nothing(layer: tuple[Tensor, Tensor, Tensor], seed: int):
    a, b, v = layer
    mix = torch.randn(
        a.shape[0], a.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    assume(torch.linalg.cond(mix) < 1e4)
    # (M·A, B·M⁻¹) in float64 is the same update to within cond(M) · 1e-16.
    mixed = projected_cosine(mix @ a.double(), b.double() @ torch.linalg.inv(mix), v)
    assert mixed == pytest.approx(projected_cosine(a, b, v), abs=FP32)


@given(layers)
@quick
def test_inputs_are_not_changed(layer: tuple[Tensor, Tensor, Tensor]):
    before = [tensor.clone() for tensor in layer]
    projected_cosine(*layer)
    assert all(torch.equal(old, new) for old, new in zip(before, layer, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision_factors(dtype: torch.dtype):
    a, b, v = (part.to(dtype) for part in random_layer(3, 4, 12, 9))
    assert projected_cosine(a, b, v) == pytest.approx(dense_cosine(a, b, v), abs=FP32)


@given(st.lists(layers, min_size=1, max_size=12), st.integers(-15, 15))
@quick
def test_updates_side_by_side_keep_their_cosines(many: list[tuple[Tensor, Tensor, Tensor]], power: int):
    # Scales of updates and V differ by far more than fp32 holds squared; together they are up to 72 wide.
    v, generator = many[0][2] * 10.0**power, torch.Generator().manual_seed(0)
    pairs = []
    for index, (a, _, _) in enumerate(many):
        rank = a.shape[0]
        lora_a = torch.randn(rank, v.shape[1], generator=generator) * 10.0 ** (2 * index - 12)
        pairs.append((lora_a, torch.randn(v.shape[0], rank, generator=generator)))
    found = projected_cosines([column_factor(*pair) for pair in pairs], whole(v), v.shape[1])
    for cosine, pair in zip(found, pairs, strict=True):
        assert cosine.undefined is None
        assert cosine.value == pytest.approx(dense_cosine(*pair, v), abs=FP32)


def test_no_square_matrix_is_built():
    # 40 000² fp32 numbers would be 6 GB; V itself is 40 000 × 1.
    a, b, v = random_layer(0, 1, 40_000, 1)
    assert projected_cosine(a, b, v) == pytest.approx(
        abs(float(torch.cosine_similarity(b, v, dim=0))), abs=FP32
    )


@pytest.mark.parametrize(
    ("a", "b", "v", "reason"),
    [
        (torch.zeros(2, 3), torch.ones(4, 2), torch.ones(4, 3), "the update is zero"),
        (torch.ones(2, 3), torch.zeros(4, 2), torch.ones(4, 3), "the update is zero"),
        (torch.ones(2, 3), torch.ones(4, 2), torch.zeros(4, 3), "alignment did not change the layer"),
        (
            tensor([[1.0]]),
            tensor([[1.0], [0.0]]),
            tensor([[0.0], [1.0]]),
            "the update has no part in the alignment's directions",
        ),
    ],
)
def test_an_undefined_cosine_is_named_never_zero(a: Tensor, b: Tensor, v: Tensor, reason: str):
    with pytest.raises(DegenerateLayerError, match=reason):
        projected_cosine(a, b, v)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("zero_update", [True, False])
def test_nan_and_infinity_never_pass(bad: float, place: int, zero_update: bool):
    layer = random_layer(0, 2, 5, 4)
    if zero_update:
        layer[0].zero_()
    layer[place][1, 1] = bad
    with pytest.raises(NonFiniteError, match="expected finite numbers"):
        projected_cosine(*layer)


def test_an_alignment_of_another_shape_is_refused():
    with pytest.raises(MismatchError, match=r"expected shape \(4, 3\) as of the update, got \(3, 4\)"):
        projected_cosine(torch.ones(2, 3), torch.ones(4, 2), torch.ones(3, 4))
