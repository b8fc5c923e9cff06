"""safemerge() with every method: what holds of all merges, and how updates are stored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge import safemerge
from safemerge.core import methods
from safemerge.core.layer_weights import LayerWeights
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergeResult, alignment_terms, merge_scored
from safemerge.core.options import MergeOptions
from safemerge.core.scoring import score_layers
from safemerge.errors import ConfigError, NonFiniteError

MODULES = [f"layers.{index}.{name}" for index in (0, 1) for name in ("q_proj", "down_proj")]
CHOOSING = [name for name in methods.names() if methods.get(name).chooses]
Inputs = tuple[dict[str, LoraPair], dict[str, LoraPair], dict[str, tuple[torch.Tensor, torch.Tensor]]]
quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def test_methods_that_shrink_the_task_adapter_alone_have_no_weight_of_safety() -> None:
    assert {name for name in methods.names() if not methods.get(name).weighs_safety} == {
        *("scale", "scale_selected", "safelora")
    }


def inputs(seed: int, rank: int = 3, scale: float = 2.0, safety_rank: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def adapter(rank: int, scale: float) -> dict[str, LoraPair]:
        return {
            module: LoraPair(
                torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator), scale
            )
            for module in MODULES
        }

    task, safety, weights = adapter(rank, scale), adapter(safety_rank, 0.5), {}
    for module in MODULES:
        unaligned = torch.randn(6, 8, generator=generator)
        weights[module] = unaligned + 0.1 * torch.randn(6, 8, generator=generator), unaligned
    return task, safety, weights


def needed(method: str) -> dict[str, Any]:
    """Options that a method cannot do without."""
    chosen = methods.get(method)
    own = {"coefficients": LayerWeights(dict.fromkeys(MODULES, (0.7, 0.3)))} if chosen.weighs_layers else {}
    return (
        own | ({"density": 0.5} if chosen.prunes else {}) | ({"components": 2} if chosen.decomposes else {})
    )


def cosines(result: MergeResult) -> list[float]:
    return [decision.cosine for decision in result.decisions if decision.cosine is not None]


def merged_count(result: MergeResult) -> int:
    return sum(decision.merged for decision in result.decisions)


@given(seed=seeds, rank=st.integers(1, 9), scale=st.floats(-8, 8))
@quick
def test_cosines_lie_in_zero_to_one(seed: int, rank: int, scale: float):
    found = cosines(safemerge(*inputs(seed, rank, scale)))
    assert len(found) == len(MODULES)
    assert all(0 <= cosine <= 1 for cosine in found)


@given(seed=seeds, factor=st.floats(0.01, 100), sign=st.sampled_from((-1, 1)))
@quick
def test_scaling_update_or_alignment_moves_no_cosine(seed: int, factor: float, sign: int):
    task, safety, weights = inputs(seed)
    expected = cosines(safemerge(task, safety, weights))
    larger = {m: LoraPair(pair.lora_a, pair.lora_b * factor * sign, 3.0) for m, pair in task.items()}
    apart = {m: (factor * (aligned - old), 0 * old) for m, (aligned, old) in weights.items()}
    # V is rounded to fp32 again where it was scaled, 6e-8 of each entry.
    assert cosines(safemerge(larger, safety, weights)) == pytest.approx(expected, abs=1e-6)
    assert cosines(safemerge(task, safety, apart)) == pytest.approx(expected, abs=1e-6)


@given(seed=seeds)
@quick
def test_other_factors_of_the_same_update_change_nothing(seed: int):
    task, safety, weights = inputs(seed)
    generator = torch.Generator().manual_seed(seed)
    mixed = {}
    for module, pair in task.items():
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator).double()).Q
        mix = turn * torch.tensor([0.5, 1.0, 2.0]).double()  # M and its inverse, as good as one another
        a, b = mix @ pair.lora_a.double(), pair.lora_b.double() @ mix.inverse()
        mixed[module] = LoraPair(a, b, pair.scale)
    one, other = (safemerge(adapter, safety, weights, threshold=2) for adapter in (task, mixed))
    assert cosines(one) == pytest.approx(cosines(other), abs=1e-6)
    for module in MODULES:  # both are stored in fp32
        torch.testing.assert_close(
            one.layers[module].delta(), other.layers[module].delta(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("method", CHOOSING)
@given(seed=seeds, threshold=st.floats(-2, 0), scale=st.floats(0.1, 9))
@quick
def test_threshold_zero_returns_the_task_adapter_bit_for_bit(
    method: str, seed: int, threshold: float, scale: float
):
    task, safety, weights = inputs(seed, scale=scale)
    result = safemerge(task, safety, weights, method=method, threshold=threshold, **needed(method))
    assert merged_count(result) == 0
    if methods.get(method).changes_kept:
        assert not result.unchanged
    else:
        assert result.unchanged
        assert result.layers == task  # the very same pairs: LoraPair compares by identity


@pytest.mark.parametrize("method", methods.names())
@given(seed=seeds, order=st.permutations(MODULES))
@quick
def test_a_threshold_above_one_merges_all_in_any_order(method: str, seed: int, order: list[str]):
    task, safety, weights = inputs(seed)
    held = [t for pair in (*task.values(), *safety.values()) for t in (pair.lora_a, pair.lora_b)]
    held += [weight for pair in weights.values() for weight in pair]
    before = [tensor.clone() for tensor in held]
    choice = {} if methods.get(method).weighs_layers else {"threshold": 1.0001}
    options = {"method": method} | choice | needed(method)
    result = safemerge(task, safety, weights, **options)
    assert merged_count(result) == len(MODULES)
    assert len({pair.rank for pair in result.layers.values()}) == 1
    assert {pair.scale for pair in result.layers.values()} == {1.0}
    assert all(torch.equal(old, new) for old, new in zip(before, held, strict=True))
    again = safemerge(*({m: mapping[m] for m in order} for mapping in (task, safety, weights)), **options)
    assert again.decisions == result.decisions
    assert all(torch.equal(again.layers[m].lora_b, result.layers[m].lora_b) for m in MODULES)


@pytest.mark.parametrize("method", methods.names())
def test_methods_that_need_no_safety_adapter_take_none(method: str):
    task, _, weights = inputs(0)
    if methods.get(method).needs_safety:
        with pytest.raises(ConfigError, match=f"method {method}: expected a safety adapter, got none"):
            safemerge(task, None, weights, method=method, **needed(method))
        return
    result = safemerge(task, None, weights, method=method, threshold=None, **needed(method))
    assert all(decision.safety_norm is None for decision in result.decisions)


@pytest.mark.parametrize("method", [name for name in CHOOSING if methods.get(name).prunes])
def test_draws_of_a_layer_do_not_depend_on_the_other_layers(method: str):
    task, safety, weights = inputs(0)
    whole = safemerge(task, safety, weights, method=method, threshold=2, density=0.5, seed=4)
    alone = {MODULES[2]: task[MODULES[2]]}
    part = safemerge(alone, safety, weights, method=method, threshold=2, density=0.5, seed=4)
    assert torch.equal(part.layers[MODULES[2]].lora_a, whole.layers[MODULES[2]].lora_a)


def test_updates_in_full_are_stored_at_the_sum_of_ranks_with_their_error():
    task, safety, weights = inputs(0, rank=2, safety_rank=1)
    result = safemerge(task, safety, weights, method="ties", density=0.4, quantile=0.5, rank=None)
    assert {pair.rank for pair in result.layers.values()} == {3}
    whole = safemerge(task, safety, weights, method="ties", density=0.4, quantile=0.5, rank=6)
    for decision in result.decisions:
        update = whole.layers[decision.module].delta(torch.float64)  # rank 6 holds all of a (6, 8) matrix
        if not decision.merged:
            assert decision.error is None
            continue
        left_out = result.layers[decision.module].delta(torch.float64) - update
        assert decision.error == pytest.approx(float(left_out.norm() / update.norm()), abs=1e-6)
        assert decision.error > 0.01


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_every_update_is_stored_at_the_rank_asked_for(rank: int):
    task, safety, weights = inputs(0)
    whole = safemerge(task, safety, weights, quantile=0.5)
    result = safemerge(task, safety, weights, quantile=0.5, rank=rank)
    for decision in result.decisions:
        assert result.layers[decision.module].rank == rank
        update = whole.layers[decision.module].delta(torch.float64)
        values = torch.linalg.svdvals(update)
        assert decision.error == pytest.approx(float(values[rank:].norm() / values.norm()), abs=1e-6)


def test_the_largest_error_allowed_sets_one_rank_for_all():
    task, safety, weights = inputs(0)
    result = safemerge(task, safety, weights, quantile=0.5, max_error=0.4)
    ranks = {pair.rank for pair in result.layers.values()}
    assert len(ranks) == 1
    assert ranks.pop() < 6
    assert all(decision.error is not None and decision.error <= 0.4 for decision in result.decisions)


def test_a_rank_makes_another_adapter_even_where_nothing_is_chosen():
    task, safety, weights = inputs(0)
    result = safemerge(task, safety, weights, threshold=0, rank=2)
    assert not result.unchanged
    assert all(decision.error > 0 and not decision.merged for decision in result.decisions)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [({"count": 1}, 1), ({"count": 4}, 4), ({"modules": ["*.q_proj"]}, 2), ({"modules": MODULES[:1]}, 1)],
)
def test_layers_are_chosen_by_count_or_by_name(choice: dict[str, Any], expected: int):
    result = safemerge(*inputs(0), **choice)
    assert merged_count(result) == expected
    chosen = [decision for decision in result.decisions if decision.merged]
    if "count" in choice:
        assert sorted(cosines(result))[:expected] == sorted(decision.cosine for decision in chosen)
    else:
        assert result.threshold is None
        assert {d.reason for d in chosen} == {"merged: on the list"}
        assert {d.reason for d in result.decisions if not d.merged} == {"kept: not on the list"}


def test_merges_of_one_scoring_have_each_their_own_term():
    task, safety, weights = inputs(0)
    merges = [MergeOptions(method="lox", components=k) for k in (1, 3)]
    merges += [MergeOptions(method="lssf", components=2), MergeOptions(method="safelora", threshold=2)]
    scores = score_layers(task, weights, terms=alignment_terms(merges))
    for options in merges:
        shared = merge_scored(task, safety, scores, options)
        alone = safemerge(
            task,
            safety,
            weights,
            method=options.method,
            components=options.components,
            threshold=options.threshold,
        )
        assert all(torch.equal(shared.layers[m].lora_b, alone.layers[m].lora_b) for m in MODULES)


@pytest.mark.parametrize("method", ["safelora", "lox", "lssf"])
def test_terms_of_weights_that_are_not_finite_are_named(method: str):
    task, safety, weights = inputs(0)
    weights[MODULES[1]][0][0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=f"{MODULES[1]}: .* in the aligned model's weight"):
        safemerge(task, safety, weights, method=method, **needed(method))


@pytest.mark.parametrize("method", ["exact", "ties"])
def test_a_safety_adapter_that_is_not_finite_is_refused(method: str):
    task, safety, weights = inputs(0)
    safety[MODULES[2]].lora_b[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=f"{MODULES[2]}: expected a finite merged update"):
        safemerge(task, safety, weights, method=method, threshold=2, **needed(method))


@pytest.mark.parametrize("method", ["safelora", "lox", "lssf"])
def test_layers_that_alignment_left_alone_can_be_merged_too(method: str):
    task, safety, weights = inputs(0)
    weights[MODULES[0]] = (weights[MODULES[0]][1],) * 2
    result = safemerge(task, safety, weights, method=method, on_undefined="merge", **needed(method))
    update = result.layers[MODULES[0]].delta()
    expected = 0 if method == "safelora" else task[MODULES[0]].delta()
    torch.testing.assert_close(update, update * 0 + expected)
