"""Weights of each layer's own, against the dense sum and against ``exact``."""

from __future__ import annotations

import pytest
import torch

from safemerge import safemerge
from safemerge.core.layer_weights import LayerWeights
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergeResult
from safemerge.errors import ConfigError, MismatchError

FP32 = 1e-6  # one rounding of each entry to fp32, then products of a few of them
MODULES = ("layers.0.q_proj", "layers.1.q_proj", "layers.2.q_proj")
ANY = LayerWeights({"layers.0.q_proj": (1.0, 0.0)})


@pytest.fixture
def adapters(pair) -> tuple[dict[str, LoraPair], dict[str, LoraPair]]:
    task = {module: pair(index) for index, module in enumerate(MODULES)}
    return task, {module: pair(index + 10, rank=2) for index, module in enumerate(MODULES)}


def merge(adapters, **options) -> MergeResult:
    task, safety = adapters
    generator = torch.Generator().manual_seed(3)
    weights = {m: tuple(torch.randn(5, 7, generator=generator) for _ in range(2)) for m in task}
    return safemerge(task, safety, weights, **options)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, 1.5), (0.2, 0.0), (0.0, 0.9), (0.0, 0.0)])
def test_it_is_the_weighted_sum_of_updates(pair, merged, weights):
    task, safety = pair(0), pair(1, rank=2)
    update = merged("learned", task, safety, weights=weights, coefficients=ANY)
    expected = weights[0] * task.delta(torch.float64) + weights[1] * safety.delta(torch.float64)
    assert float((update.delta(torch.float64) - expected).norm()) <= FP32 * float(task.norm())


def test_with_the_weights_and_choice_of_exact_it_gives_the_same_bytes(adapters):
    exact = merge(adapters, count=2, task_weight=0.6, safety_weight=0.4)
    chosen = {d.module: (0.6, 0.4) if d.merged else (1.0, 0.0) for d in exact.decisions}
    learned = merge(adapters, coefficients=LayerWeights(chosen))
    assert sum(weights == (1.0, 0.0) for weights in chosen.values()) == 1
    assert [d.merged for d in learned.decisions] == [d.merged for d in exact.decisions]
    for module in MODULES:
        assert torch.equal(learned.layers[module].lora_a, exact.layers[module].lora_a)
        assert torch.equal(learned.layers[module].lora_b, exact.layers[module].lora_b)


def test_decisions_hold_each_layers_weights_and_still_its_cosine(adapters):
    given = dict(zip(MODULES, ((0.25, 0.75), (1.0, 0.0), (0.5, 0.0)), strict=True))
    result = merge(adapters, coefficients=LayerWeights(given))
    assert {d.module: d.weights for d in result.decisions} == given
    assert [d.reason for d in result.decisions] == [
        "merged: coefficients 0.25 and 0.75",
        "kept: coefficients 1 and 0",
        "merged: coefficients 0.5 and 0",
    ]
    assert all(d.cosine is not None for d in result.decisions)
    assert result.threshold is None


def test_where_all_are_one_and_zero_it_is_the_task_adapter_itself(adapters):
    result = merge(adapters, coefficients=LayerWeights(dict.fromkeys(MODULES, (1, 0))))
    assert result.unchanged
    assert result.layers == adapters[0]


def test_a_layer_of_the_task_adapter_alone_has_its_one_weight(adapters):
    task, safety = adapters
    del safety[MODULES[1]]
    given = LayerWeights(dict(zip(MODULES, ((0.7, 0.3), (0.5, 0.0), (0.7, 0.3)), strict=True)))
    result = merge((task, safety), coefficients=given)
    alone = result.layers[MODULES[1]].delta()
    torch.testing.assert_close(alone, 0.5 * task[MODULES[1]].delta())
    assert result.decisions[1].safety_norm is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({MODULES[0]: (0.7, 0.3)}, r"some of every layer, got none of layers.1.q_proj, layers.2.q_proj"),
        (dict.fromkeys((*MODULES, "layers.9.q_proj"), (0.7, 0.3)), "got others: layers.9.q_proj"),
        (dict.fromkeys(MODULES, (0.7, 0.3)), "it lacks the layer, got others in layers.2.q_proj"),
    ],
)
def test_weights_of_other_layers_are_refused(adapters, given, message):
    task, safety = adapters
    del safety[MODULES[2]]
    with pytest.raises(MismatchError, match=message):
        merge((task, safety), coefficients=LayerWeights(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "coefficients: expected a pair for every layer, got none"),
        ({"a.10": (float("nan"), 0.0), "a.9": (1.0, float("inf"))}, r"expected finite .* in a.9, a.10"),
    ],
)
def test_weights_that_are_none_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        LayerWeights(given)


def test_their_digest_is_that_of_the_numbers_in_any_order():
    one, two = LayerWeights({"a": (1.0, 0.0), "b": (0.5, 0.5)}), LayerWeights({"b": (0.5, 0.5), "a": (1, 0)})
    assert one.digest == two.digest != LayerWeights({"a": (1.0, 0.0), "b": (0.5, 0.6)}).digest
    assert one.mean == (0.75, 0.25)
