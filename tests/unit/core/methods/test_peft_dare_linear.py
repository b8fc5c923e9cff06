"""PEFT's random pruning of factors, against its distribution."""

from __future__ import annotations

import torch

from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Layer
from safemerge.core.methods.peft_dare_linear import merge
from safemerge.core.options import MergeOptions

METHOD = "peft_dare_linear"


def flat(lora: LoraPair) -> torch.Tensor:
    return torch.cat((lora.lora_a.flatten(), lora.lora_b.flatten()))


def test_without_pruning_it_is_peft_linear(pair, merged):
    task, safety = pair(0), pair(1)
    assert torch.equal(
        flat(merged(METHOD, task, safety, density=1.0)), flat(merged("peft_linear", task, safety))
    )


def test_it_prunes_at_random_and_rescales(peft_merge, pair, merged):
    task, safety = pair(0), pair(1)
    density, draws = 0.6, 3000
    generator = torch.Generator().manual_seed(0)
    layer, options = Layer(task, safety), MergeOptions(method=METHOD, density=density)
    ours = torch.stack([flat(merge(layer, options, generator)) for _ in range(draws)])
    mean = flat(merged("peft_linear", task, safety))
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


def test_it_repeats_with_its_seed(pair, merged):
    first, second, other = (
        flat(merged(METHOD, pair(0), pair(1), density=0.5, seed=seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_layer_not_chosen_is_pruned_too(pair, merged):
    task = pair(0)
    update = merged(METHOD, task, pair(1), density=0.5, kept=True)
    kept = update.lora_b != 0
    assert 0 < kept.sum() < kept.numel()
    assert torch.allclose(update.lora_b[kept], 2 * 2**0.5 * task.lora_b[kept])


def test_a_layer_that_the_safety_adapter_lacks_is_kept(pair, merged):
    task = pair(0)
    assert torch.equal(
        flat(merged(METHOD, task, density=0.5, kept=True)), flat(merged("peft_linear", task, kept=True))
    )
