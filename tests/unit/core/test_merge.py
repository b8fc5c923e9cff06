"""safemerge() on mappings: what is chosen, what becomes of it, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge import safemerge
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergeResult
from safemerge.core.module_names import natural_order
from safemerge.core.similarity import projected_cosine
from safemerge.errors import ConfigError, DegenerateLayerError, MismatchError, NonFiniteError

FP32 = 1e-6
MODULES = [f"model.layers.{index}.self_attn.{name}" for index in (0, 2, 10) for name in ("q_proj", "v_proj")]
Adapter = dict[str, LoraPair]
Weights = dict[str, tuple[torch.Tensor, torch.Tensor]]
quick = settings(max_examples=25, deadline=None, derandomize=True)


def adapter(seed: int, modules: list[str] = MODULES, rank: int = 3, scale: float = 2.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {
        module: LoraPair(
            torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator), scale
        )
        for module in modules
    }


def alignment(seed: int = 5, modules: list[str] = MODULES) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for module in modules:
        unaligned = torch.randn(6, 8, generator=generator)
        weights[module] = unaligned + 0.1 * torch.randn(6, 8, generator=generator), unaligned
    return weights


def cosines(result: MergeResult) -> dict[str, float | None]:
    return {decision.module: decision.cosine for decision in result.decisions}


def merged_modules(result: MergeResult) -> set[str]:
    return {decision.module for decision in result.decisions if decision.merged}


def assert_update(got: LoraPair, expected: torch.Tensor) -> None:
    assert float((got.delta(torch.float64) - expected).norm()) <= FP32 * float(expected.norm())


def test_chosen_layers_get_the_weighted_sum_and_others_keep_their_update():
    task, safety, weights = adapter(0), adapter(1, rank=4, scale=0.7), alignment()
    middle = sorted(cosines(safemerge(task, safety, weights, threshold=0)).values())[3]
    result = safemerge(task, safety, weights, threshold=middle, task_weight=0.7)
    assert len(merged_modules(result)) == 3
    for decision in result.decisions:
        assert decision.merged == (decision.cosine < middle)
        assert decision.cosine == projected_cosine(
            task[decision.module].lora_a,
            task[decision.module].lora_b,
            weights[decision.module][0] - weights[decision.module][1],
        )
        assert decision.reason.startswith(
            "merged: cosine below" if decision.merged else "kept: cosine not below"
        )
        assert decision.task_norm == pytest.approx(float(task[decision.module].delta().norm()), rel=FP32)
        assert decision.safety_norm == pytest.approx(float(safety[decision.module].delta().norm()), rel=FP32)
        update = task[decision.module].delta(torch.float64)
        if decision.merged:
            update = 0.7 * update + (1 - 0.7) * safety[decision.module].delta(torch.float64)
        assert_update(result.layers[decision.module], update)
    assert {pair.rank for pair in result.layers.values()} == {7}
    assert {pair.scale for pair in result.layers.values()} == {1.0}
    assert result.threshold == middle
    assert not result.unchanged


def test_the_default_threshold_is_that_of_the_paper():
    result = safemerge(adapter(0), adapter(1), alignment())
    assert result.threshold == 0.35


def test_layers_come_in_natural_order():
    result = safemerge(adapter(0), adapter(1), alignment())
    assert [decision.module for decision in result.decisions] == MODULES
    assert sorted(["a.10.b", "a.2.b", "a.b"], key=natural_order) == ["a.2.b", "a.10.b", "a.b"]


@pytest.mark.parametrize("threshold", [0, -1])
@pytest.mark.parametrize("method", ["exact", "peft_linear", "scale_selected"])
def test_threshold_zero_returns_the_task_adapter_bit_for_bit(threshold: float, method: str):
    task = adapter(0, scale=0.37)
    result = safemerge(task, adapter(1), alignment(), threshold=threshold, method=method)
    assert result.unchanged
    assert result.layers == task  # the very same pairs: LoraPair compares by identity
    assert merged_modules(result) == set()


def test_threshold_above_one_merges_all():
    assert merged_modules(safemerge(adapter(0), adapter(1), alignment(), threshold=1.0001)) == set(MODULES)


@pytest.mark.parametrize(("quantile", "count"), [(0, 0), (0.5, 3), (1, 6)])
def test_quantile_merges_a_share(quantile: float, count: int):
    result = safemerge(adapter(0), adapter(1), alignment(), quantile=quantile)
    lowest = sorted(MODULES, key=lambda module: cosines(result)[module])[:count]
    assert merged_modules(result) == set(lowest)


def test_scale_scales_every_layer_and_chooses_none():
    task = adapter(0)
    result = safemerge(task, adapter(1), alignment(), method="scale", task_weight=0.3)
    assert result.threshold is None
    assert merged_modules(result) == set(MODULES)
    assert all(cosine is not None for cosine in cosines(result).values())
    for module in MODULES:
        assert_update(result.layers[module], 0.3 * task[module].delta(torch.float64))
        assert result.layers[module].rank == 3


def test_scale_selected_is_exact_without_the_safety_adapter():
    task, safety = adapter(0), adapter(1)
    result = safemerge(task, safety, alignment(), method="scale_selected", quantile=0.5, task_weight=0.3)
    assert merged_modules(result) == merged_modules(safemerge(task, safety, alignment(), quantile=0.5))
    for module in MODULES:
        weight = 0.3 if module in merged_modules(result) else 1.0
        assert_update(result.layers[module], weight * task[module].delta(torch.float64))


def test_peft_linear_spreads_the_scale_over_both_factors_of_kept_layers():
    task = adapter(0, scale=4.0)
    result = safemerge(task, adapter(1), alignment(), method="peft_linear", quantile=0.5)
    for module in set(MODULES) - merged_modules(result):
        assert torch.equal(result.layers[module].lora_a, 2 * task[module].lora_a)
        assert torch.equal(result.layers[module].lora_b, 2 * task[module].lora_b)


def test_dare_linear_prunes_merged_and_kept_layers_by_its_seed():
    task, safety = adapter(0), adapter(1)
    results = [
        safemerge(task, safety, alignment(), method="peft_dare_linear", quantile=0.5, density=0.5, seed=seed)
        for seed in (1, 1, 2)
    ]
    for module in MODULES:
        first, second, third = (result.layers[module].lora_a for result in results)
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        if module not in merged_modules(
            results[0]
        ):  # the task's own entries, doubled by 1 / density, or zero
            kept = first != 0
            assert torch.allclose(first[kept], 2 * 2**0.5 * task[module].lora_a[kept])
            assert 0 < kept.sum() < kept.numel()


def test_dare_linear_prunes_even_where_nothing_is_chosen():
    result = safemerge(
        adapter(0), adapter(1), alignment(), method="peft_dare_linear", threshold=0, density=0.5
    )
    assert not result.unchanged
    assert all((pair.lora_a == 0).any() for pair in result.layers.values())


def test_layers_of_one_adapter_alone_are_kept_or_left_out():
    task, safety = adapter(0, MODULES[:4]), adapter(1, MODULES[2:])
    result = safemerge(task, safety, alignment(), threshold=1.1)
    assert merged_modules(result) == set(MODULES[2:4])
    assert list(result.layers) == MODULES[:4]
    assert result.safety_only == tuple(MODULES[4:])
    alone = result.decisions[0]
    assert alone.reason == "kept: the safety adapter lacks the layer"
    assert alone.safety_norm is None
    assert alone.cosine is not None
    assert_update(result.layers[alone.module], task[alone.module].delta(torch.float64))


def test_layers_that_cannot_be_merged_do_not_count_for_the_quantile():
    task, safety = adapter(0), adapter(1, MODULES[:2])
    assert len(merged_modules(safemerge(task, safety, alignment(), quantile=0.5))) == 1


def degenerate() -> tuple[Adapter, Adapter, Weights]:
    """Layer 0: alignment changed nothing. Layer 1: the task update is zero."""
    task, safety, weights = adapter(0), adapter(1), alignment()
    weights[MODULES[0]] = (weights[MODULES[0]][1].clone(), weights[MODULES[0]][1])
    task[MODULES[1]] = LoraPair(task[MODULES[1]].lora_a, torch.zeros(6, 3), 2.0)
    return task, safety, weights


@pytest.mark.parametrize(("on_undefined", "count"), [("keep", 4), ("merge", 6)])
def test_undefined_layers_are_kept_or_merged_as_asked(on_undefined: str, count: int):
    result = safemerge(*degenerate(), threshold=1.1, on_undefined=on_undefined)
    assert len(merged_modules(result)) == count
    assert [decision.cosine for decision in result.decisions[:2]] == [None, None]
    word = "kept" if on_undefined == "keep" else "merged"
    assert result.decisions[0].reason == f"{word}: cosine undefined, alignment did not change the layer"
    assert result.decisions[1].reason == f"{word}: cosine undefined, the update is zero"


def test_undefined_layers_do_not_count_for_the_quantile():
    assert len(merged_modules(safemerge(*degenerate(), quantile=0.5))) == 2


def test_undefined_layers_can_fail_the_merge():
    with pytest.raises(
        DegenerateLayerError,
        match=r"undefined in 2 of 6 layers: model.layers.0.self_attn.q_proj: alignment did not .*; "
        r"model.layers.0.self_attn.v_proj: the update is zero",
    ):
        safemerge(*degenerate(), on_undefined="fail")


@given(st.permutations(MODULES), st.floats(0, 1.1))
@quick
def test_the_order_of_the_mappings_does_not_matter(order: list[str], threshold: float):
    task, safety, weights = adapter(0), adapter(1), alignment()
    first = safemerge(task, safety, weights, threshold=threshold)
    second = safemerge(
        {module: task[module] for module in order},
        {module: safety[module] for module in reversed(order)},
        {module: weights[module] for module in order},
        threshold=threshold,
    )
    assert first.decisions == second.decisions
    assert all(torch.equal(first.layers[m].lora_b, second.layers[m].lora_b) for m in MODULES)


@pytest.mark.parametrize("method", ["exact", "peft_linear", "scale", "scale_selected"])
def test_inputs_are_not_changed(method: str):
    task, safety, weights = adapter(0), adapter(1), alignment()
    inputs = [t for pair in (*task.values(), *safety.values()) for t in (pair.lora_a, pair.lora_b)]
    inputs += [weight for pair in weights.values() for weight in pair]
    before = [tensor.clone() for tensor in inputs]
    safemerge(task, safety, weights, method=method, threshold=2)
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


def test_weights_can_be_read_one_layer_at_a_time_and_progress_is_told():
    weights, seen, told = alignment(), [], []

    def read(module: str) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(module)
        return weights[module]

    lazily = safemerge(adapter(0), adapter(1), read, progress=lambda *state: told.append(state))
    assert lazily.decisions == safemerge(adapter(0), adapter(1), weights).decisions
    assert seen == MODULES
    assert told[0] == (1, 6, MODULES[0])
    assert told[-1] == (6, 6, MODULES[-1])


@pytest.mark.parametrize(
    ("where", "side", "message"),
    [
        ("task", "lora_a", "the task adapter's lora_A"),
        ("task", "lora_b", "the task adapter's lora_B"),
        ("aligned", 0, "the aligned model's weight"),
        ("unaligned", 1, "the unaligned model's weight"),
    ],
)
def test_nan_is_named(where: str, side: str | int, message: str):
    task, weights = adapter(0), alignment()
    bad = getattr(task[MODULES[3]], str(side)) if where == "task" else weights[MODULES[3]][int(side)]
    bad[2, 2] = math.nan
    with pytest.raises(NonFiniteError, match=f"{MODULES[3]}: expected finite .* in {message}$"):
        safemerge(task, adapter(1), weights)


def test_weights_whose_products_overflow_are_named():
    weights = alignment()
    huge = torch.full((6, 8), 3e38)
    weights[MODULES[0]] = (huge, -huge)
    with pytest.raises(NonFiniteError, match=f"{MODULES[0]}: .* in products of them"):
        safemerge(adapter(0), adapter(1), weights)


def test_weights_of_another_shape_are_named():
    weights = alignment()
    weights[MODULES[2]] = (torch.ones(5, 8), torch.zeros(5, 8))
    with pytest.raises(MismatchError, match=rf"{MODULES[2]}: .*\(6, 8\).*\(5, 8\)"):
        safemerge(adapter(0), adapter(1), weights)


def test_missing_weights_are_named():
    with pytest.raises(MismatchError, match=f"got none for {MODULES[4]}, {MODULES[5]}$"):
        safemerge(adapter(0), adapter(1), alignment(modules=MODULES[:4]))


def test_adapters_of_different_shape_are_named():
    safety = adapter(1)
    safety[MODULES[1]] = LoraPair(torch.ones(3, 8), torch.ones(5, 3))
    with pytest.raises(MismatchError, match=rf"{MODULES[1]} \(task \(6, 8\), safety \(5, 8\)\)"):
        safemerge(adapter(0), safety, alignment())


def test_adapters_without_common_layers_are_refused():
    with pytest.raises(MismatchError, match="layers in common, got none"):
        safemerge(adapter(0, MODULES[:2]), adapter(1, MODULES[2:]), alignment())


def test_a_layer_that_the_method_cannot_merge_is_named():
    with pytest.raises(MismatchError, match=rf"{MODULES[0]}: expected adapters of one rank"):
        safemerge(adapter(0), adapter(1, rank=5), alignment(), method="peft_linear", threshold=2)


def test_wrong_options_are_refused_before_weights_are_read():
    def never(module: str) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError(f"{module} was read")

    with pytest.raises(ConfigError, match="got threshold and quantile"):
        safemerge(adapter(0), adapter(1), never, threshold=0.1, quantile=0.2)
