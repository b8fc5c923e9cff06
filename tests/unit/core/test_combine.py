"""Ways to make one pair of two, against the dense formula and against PEFT itself."""

from __future__ import annotations

import pytest
import torch

from safemerge.core import combine
from safemerge.core.lora import LoraPair
from safemerge.errors import MismatchError

# One rounding of each entry to fp32, then products of a few of them.
FP32 = 1e-6


def pair(seed: int, rank: int = 3, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    return LoraPair(
        torch.randn(rank, 7, generator=generator).to(dtype),
        torch.randn(5, rank, generator=generator).to(dtype),
        scale,
    )


def assert_same_update(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((got - expected).norm() / expected.norm()) < FP32


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.7, 0.3), (1.0, -0.5), (-0.3, 1.3), (0.0, 1.0)])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5)])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.37, 1.9)])
def test_exact_is_the_weighted_sum_of_updates(
    weights: tuple[float, float], ranks: tuple[int, int], scales: tuple[float, float]
):
    task, safety = pair(0, ranks[0], scales[0]), pair(1, ranks[1], scales[1])
    merged = combine.exact(task, safety, *weights)
    assert merged.rank == sum(ranks)
    assert merged.scale == 1
    assert_same_update(
        merged.delta(torch.float64),
        weights[0] * task.delta(torch.float64) + weights[1] * safety.delta(torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_results_are_stored_in_fp32(dtype: torch.dtype):
    task, safety = pair(0, dtype=dtype), pair(1, dtype=dtype)
    merged = combine.exact(task, safety, 0.8, 0.2)
    assert merged.lora_a.dtype == merged.lora_b.dtype == torch.float32
    assert_same_update(merged.delta(), (0.8 * task.delta() + 0.2 * safety.delta()))
    assert combine.peft_linear(task, safety, 0.8, 0.2).lora_a.dtype == torch.float32


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_folding_a_power_of_two_is_exact(scale: float):
    task = pair(0, scale=scale)
    assert torch.equal(combine.scaled(task).delta(), task.delta())


def test_scaled_multiplies_the_update():
    task = pair(0, scale=0.37)
    assert_same_update(combine.scaled(task, 0.8).delta(torch.float64), 0.8 * task.delta(torch.float64))


def test_padding_adds_zeros_and_no_update():
    task = combine.scaled(pair(0, rank=3))
    wide = combine.padded(task, 8)
    assert wide.rank == 8
    assert torch.equal(wide.lora_a[:3], task.lora_a)
    assert not wide.lora_a[3:].any()
    assert not wide.lora_b[:, 3:].any()
    assert torch.equal(wide.delta(torch.float64), task.delta(torch.float64))
    assert combine.padded(task, 3) is task


def test_inputs_are_not_changed():
    task, safety = pair(0), pair(1)
    before = [factor.clone() for factor in (task.lora_a, task.lora_b, safety.lora_a, safety.lora_b)]
    combine.exact(task, safety, 0.8, 0.2)
    combine.peft_linear(task, safety, 0.8, 0.2)
    combine.dare_linear(task, safety, 0.8, 0.2, density=0.5, generator=torch.Generator().manual_seed(0))
    after = (task.lora_a, task.lora_b, safety.lora_a, safety.lora_b)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def peft_merge():
    """What PEFT's ``add_weighted_adapter`` makes of one or two pairs, their weights and its options."""
    from peft import LoraConfig, get_peft_model

    def merge(pairs: tuple[LoraPair, ...], weights: tuple[float, ...], **options: object) -> LoraPair:
        names = ("task", "safety")[: len(pairs)]
        model = torch.nn.Sequential()
        model.add_module("linear", torch.nn.Linear(7, 5, bias=False))
        peft_model = None
        for name, lora in zip(names, pairs, strict=True):
            config = LoraConfig(r=lora.rank, lora_alpha=lora.scale * lora.rank, target_modules=["linear"])
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=name)
            else:
                peft_model.add_adapter(name, config)
            layer = peft_model.base_model.model.linear
            layer.lora_A[name].weight.data = lora.lora_a.clone()
            layer.lora_B[name].weight.data = lora.lora_b.clone()
        peft_model.base_model.add_weighted_adapter(list(names), list(weights), "merged", **options)
        return LoraPair(layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach())

    return merge


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.7, 0.3), (1.2, -0.2), (-0.4, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.0, 4.0)])
def test_peft_linear_is_what_peft_gives(
    peft_merge, weights: tuple[float, float], scales: tuple[float, float]
):
    task, safety = pair(0, scale=scales[0]), pair(1, scale=scales[1])
    expected = peft_merge((task, safety), weights, combination_type="linear")
    merged = combine.peft_linear(task, safety, *weights)
    assert torch.equal(merged.lora_a, expected.lora_a)
    assert torch.equal(merged.lora_b, expected.lora_b)


def test_peft_linear_of_one_adapter_is_what_peft_gives(peft_merge):
    task = pair(0, scale=2.0)
    expected = peft_merge((task,), (1.0,), combination_type="linear")
    merged = combine.peft_linear(task)
    assert torch.equal(merged.lora_a, expected.lora_a)
    assert torch.equal(merged.lora_b, expected.lora_b)
    assert_same_update(merged.delta(), task.delta())


def test_peft_linear_is_not_the_formula():
    task, safety = pair(0), pair(1)
    formula = 0.8 * task.delta() + 0.2 * safety.delta()
    error = combine.peft_linear(task, safety, 0.8, 0.2).delta() - formula
    # The cross terms are √(αβ) = 0.4 of products as large as the updates themselves.
    assert 0.3 < float(error.norm() / formula.norm()) < 1.5


def test_dare_linear_without_pruning_is_peft_linear():
    task, safety = pair(0), pair(1)
    generator = torch.Generator().manual_seed(0)
    merged = combine.dare_linear(task, safety, 0.8, 0.2, density=1.0, generator=generator)
    assert torch.equal(merged.lora_a, combine.peft_linear(task, safety, 0.8, 0.2).lora_a)


def test_dare_linear_prunes_at_random_and_rescales(peft_merge):
    task, safety = pair(0), pair(1)
    density, draws = 0.6, 3000
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        merged = combine.dare_linear(task, safety, 0.8, 0.2, density=density, generator=generator)
        return torch.cat((merged.lora_a.flatten(), merged.lora_b.flatten()))

    ours = torch.stack([draw() for _ in range(draws)])
    linear = combine.peft_linear(task, safety, 0.8, 0.2)
    mean = torch.cat((linear.lora_a.flatten(), linear.lora_b.flatten()))
    root_task, root_safety = (0.8 * 2) ** 0.5, (0.2 * 2) ** 0.5
    parts = (root_task * flat(task), root_safety * flat(safety))
    # An entry kept with probability p and divided by p has variance x²(1 − p)/p.
    deviation = (sum(part**2 for part in parts) * (1 - density) / density).sqrt()
    standard_error = deviation / draws**0.5
    assert float(((ours.mean(0) - mean) / standard_error).abs().max()) < 4.5
    assert torch.allclose(ours.std(0), deviation, rtol=0.1)
    # Every value PEFT draws is one that we draw: each of the two parts is kept, rescaled, or zero.
    torch.manual_seed(1)
    theirs = flat(peft_merge((task, safety), (0.8, 0.2), combination_type="dare_linear", density=density))
    possible = torch.stack(
        [keep_t * parts[0] + keep_s * parts[1] for keep_t in (0, 1 / density) for keep_s in (0, 1 / density)]
    )
    for values in (theirs, ours[0]):
        assert float((possible - values).abs().min(0).values.max()) < 1e-5


def flat(lora: LoraPair) -> torch.Tensor:
    return torch.cat((lora.lora_a.flatten(), lora.lora_b.flatten()))


def test_dare_linear_repeats_with_its_seed():
    task, safety = pair(0), pair(1)
    first, second, other = (
        combine.dare_linear(
            task, safety, 0.8, 0.2, density=0.5, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.lora_a, second.lora_a)
    assert not torch.equal(first.lora_a, other.lora_a)


def test_updates_of_different_shape_are_refused():
    other = LoraPair(torch.ones(3, 6), torch.ones(5, 3))
    for merge in (combine.exact, combine.peft_linear):
        with pytest.raises(
            MismatchError, match=r"one shape, got \(5, 7\) in the task and \(5, 6\) in the safety"
        ):
            merge(pair(0), other, 0.8, 0.2)


def test_only_exact_merges_different_ranks():
    with pytest.raises(MismatchError, match=r"only method exact.*r=3 in the task and r=4 in the safety"):
        combine.peft_linear(pair(0, rank=3), pair(1, rank=4), 0.8, 0.2)
