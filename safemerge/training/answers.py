"""Answers as tokens: chat template, labels of the answer alone, and their negative log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemerge.training.data import Example

IGNORED = -100
"""Label of a token that bears no loss."""


class EncodedExample(NamedTuple):
    """One example in the model's chat template."""

    input_ids: list[int]
    prompt_tokens: int
    """So many tokens come before the answer, and bear no loss."""


class Batch(NamedTuple):
    """Examples beside each other, padded on the right, each (examples, tokens)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """The token itself where it belongs to an answer, else ``IGNORED``."""


def encode(tokenizer: Any, examples: Sequence[Example], max_length_tokens: int) -> list[EncodedExample]:
    """Put examples into the chat template, as TRL does when it trains: request, then answer.

    Args:
        tokenizer: with a chat template.
        examples: requests and their answers.
        max_length_tokens: where to cut; those of whose answer nothing is left are dropped.
    """
    encoded = []
    for example in examples:
        request = [{"role": "user", "content": example.prompt}]
        answered = [*request, {"role": "assistant", "content": example.response}]
        prompt = _token_ids(tokenizer, request, add_generation_prompt=True)
        whole = _token_ids(tokenizer, answered, add_generation_prompt=False)[:max_length_tokens]
        if len(whole) > len(prompt):
            encoded.append(EncodedExample(whole, len(prompt)))
    return encoded


def collate(examples: Sequence[EncodedExample], pad_id: int, device: torch.device | str) -> Batch:
    """A batch of the examples, as wide as the longest."""
    width = max(len(example.input_ids) for example in examples)
    rows = []
    for ids, prompt_tokens in examples:
        padding = width - len(ids)
        labels = [IGNORED] * prompt_tokens + ids[prompt_tokens:]
        rows.append((ids + [pad_id] * padding, [1] * len(ids) + [0] * padding, labels + [IGNORED] * padding))
    return Batch(*(torch.tensor(column, device=device) for column in zip(*rows, strict=True)))


def answer_nll(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Summed negative log-likelihood of the labelled tokens, in nats; a scalar.

    Logits are made only where answers are: the output layer is a third of a small model's work.

    Args:
        model: a causal language model of transformers.
        inputs: what its forward pass takes, without labels.
        labels: (examples, tokens).
    """
    # Position t predicts token t + 1.
    wanted = labels[:, 1:]
    answered = (wanted != IGNORED).any(dim=0).nonzero().squeeze(1)
    logits = model(**inputs, use_cache=False, logits_to_keep=answered).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), wanted[:, answered].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def _token_ids(tokenizer: Any, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        turns, add_generation_prompt=add_generation_prompt, return_dict=True
    )
    return list(encoded["input_ids"])
