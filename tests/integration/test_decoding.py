"""Decoding that drops ended rows says what transformers' own ``generate`` says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safemerge.evaluation.decoding import decode
from safemerge.evaluation.transformers_arm import TransformersArm, encode, load_arm

pytestmark = pytest.mark.integration

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def arm(tiny_checkpoint):
    """The tiny model with end tokens at which its random answers end here and there."""
    arm = load_arm(tiny_checkpoint)
    arm.model.generation_config.eos_token_id = [2, *range(40, 60)]
    return arm


@pytest.fixture(scope="module")
def prompts(arm) -> list[list[int]]:
    return [encode(arm.tokenizer, f"{'Tell me more. ' * (n % 5)}What is {n}?") for n in range(20)]


def by_generate(arm: TransformersArm, prompts: list[list[int]]) -> list[tuple[list[int], torch.Tensor]]:
    """Every prompt alone, by the library: new tokens, and logits at each."""
    found = []
    for tokens in prompts:
        output = arm.model.generate(
            input_ids=torch.tensor([tokens]),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        found.append((output.sequences[0, len(tokens) :].tolist(), torch.cat(output.logits)))
    return found


def test_answers_are_those_of_generate_and_ended_rows_are_let_go(arm, prompts, monkeypatch):
    expected = by_generate(arm, prompts)
    lengths = {len(tokens) for tokens, _ in expected}
    assert len(lengths) > 5
    assert NEW_TOKENS in lengths
    original, computed = type(arm.model).forward, []

    def watched(model: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        computed.append(len(input_ids))
        return original(model, input_ids, **options)

    monkeypatch.setattr(type(arm.model), "forward", watched)
    wanted = [5, 50, 300]
    found = decode(arm.model, arm.tokenizer, prompts, max_new_tokens=NEW_TOKENS, wanted=wanted)
    assert [row.tokens for row in found] == [tokens for tokens, _ in expected]
    for row, (tokens, logits) in zip(found, expected, strict=True):
        assert row.logits.shape == (len(tokens), 3)
        # fp32 sums in batches of other sizes.
        torch.testing.assert_close(row.logits, logits[:, wanted], rtol=1e-4, atol=1e-5)
    assert len(computed) == NEW_TOKENS
    assert computed == sorted(computed, reverse=True)
    # An eighth of the rows (2 of 20) may have ended and still be computed, one more at their last step.
    going = [sum(len(tokens) > step for tokens, _ in expected) for step in range(NEW_TOKENS)]
    assert all(rows <= going_on + 1 for rows, going_on in zip(computed, going, strict=True))
    assert sum(computed) < 0.7 * NEW_TOKENS * len(prompts)


def test_the_same_batch_gives_the_same_bytes(arm, prompts):
    first, second = (
        decode(arm.model, arm.tokenizer, prompts, max_new_tokens=NEW_TOKENS, wanted=[5]) for _ in range(2)
    )
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(first, second, strict=True))


def test_a_model_that_keeps_more_than_keys_and_values_keeps_its_rows(arm, tiny_checkpoint):
    """Rows cannot be taken out of the state of a linear attention: Qwen3-Next has both kinds of layers."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(
        Qwen3NextConfig(
            vocab_size=384,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"],
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            linear_num_key_heads=1,
            linear_num_value_heads=2,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            eos_token_id=2,
            pad_token_id=3,
        )
    ).eval()
    model.generation_config.eos_token_id = [2, *range(40, 100)]
    hybrid = TransformersArm(model, arm.tokenizer)
    prompts = [encode(arm.tokenizer, f"What is {n}?") for n in range(10, 18)]
    found = decode(model, arm.tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    assert [row.tokens for row in found] == [tokens for tokens, _ in by_generate(hybrid, prompts)]
