"""Greedy decoding of one batch by transformers' ``generate``, without the rows that have ended.

``generate`` computes every row until the longest has ended, so that a model which refuses in one
line costs as much as one that goes on to the limit. Here it is stopped whenever an eighth of the rows
has ended, and goes on with the others from its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ENDED_SHARE = 0.125
"""Share of a batch's rows that have to end before the others go on without them."""


class Decoded(NamedTuple):
    """What a model said to one prompt."""

    tokens: list[int]
    """New tokens, up to the one that ends the answer, or to the limit."""
    logits: Tensor | None
    """(steps, wanted tokens), fp32: how likely each wanted token was at each step; None where none was."""


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model ships with; sorted."""
    shipped = model.generation_config.eos_token_id
    ends = shipped if isinstance(shipped, list) else [shipped]
    return sorted({token for token in (*ends, tokenizer.eos_token_id) if token is not None})


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    wanted: Sequence[int] = (),
) -> list[Decoded]:
    """Answer one batch: the likeliest token each time, whatever sampling and penalties the model ships with.

    Args:
        model: a causal language model with ``generate``, on its device.
        tokenizer: the model's.
        prompts: tokens of each prompt; padded on the left, so that all answers start together.
        max_new_tokens: length at which an answer is cut.
        wanted: tokens whose logits are kept at every step.

    Returns:
        In the order of ``prompts``.
    """
    import torch
    from transformers import GenerationConfig

    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    shipped = model.generation_config
    # generate() fills what is unset from the model's own settings, penalties among them.
    model.generation_config = GenerationConfig()
    try:
        with torch.inference_mode():
            return _decode(model, prompts, ends, pad, max_new_tokens, list(wanted))
    finally:
        model.generation_config = shipped


def _decode(
    model: Any, prompts: Sequence[Sequence[int]], ends: list[int], pad: int, limit: int, wanted: list[int]
) -> list[Decoded]:
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    tokens, mask = _padded(prompts, pad, model.device)
    width = tokens.shape[1]
    logits = torch.empty(len(prompts), 0, len(wanted))
    found: dict[int, Decoded] = {}
    rows, cache = list(range(len(prompts))), _shrinkable_cache(model)
    stop = StoppingCriteriaList([] if cache is None else [_enough_ended(width, ends, len(prompts))])
    while rows:
        done = tokens.shape[1] - width
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=limit - done,
                eos_token_id=ends or None,
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_logits=bool(wanted),
            ),
            stopping_criteria=stop,
        )
        tokens = output.sequences
        if wanted:
            steps = [step[:, wanted].float().cpu() for step in output.logits]
            logits = torch.cat([logits, torch.stack(steps, dim=1)], dim=1)
        said = [_up_to_end(row, ends) for row in tokens[:, width:].tolist()]
        going = [at for at, row in enumerate(said) if len(row) < limit and row[-1] not in ends]
        for at in set(range(len(rows))).difference(going):
            found[rows[at]] = Decoded(said[at], logits[at, : len(said[at])] if wanted else None)
        rows = [rows[at] for at in going]
        if cache is not None and rows:
            kept = torch.tensor(going, device=tokens.device)
            cache.batch_select_indices(kept)
            tokens, logits = tokens[kept], logits[going]
            mask = torch.cat([mask[kept], mask.new_ones(len(rows), tokens.shape[1] - mask.shape[1])], dim=1)
    return [found[row] for row in range(len(prompts))]


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, (rows, longest prompt)."""
    import torch

    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def _up_to_end(row: list[int], ends: list[int]) -> list[int]:
    """The tokens with the first that ends an answer, without the padding after it."""
    return row[: next((at for at, token in enumerate(row, start=1) if token in ends), len(row))]


def _shrinkable_cache(model: Any) -> Any:
    """An empty cache out of which rows can be taken; None for models that keep more than keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
    return cache if cache.layers and plain else None


def _enough_ended(width: int, ends: list[int], rows: int) -> Any:
    """A criterion that stops all rows once enough of them have ended.

    Args:
        width: tokens of a prompt, padded.
        ends: tokens that end an answer.
        rows: how many the batch began with.
    """
    import torch
    from transformers import StoppingCriteria

    enough = max(1, int(rows * ENDED_SHARE))
    end = torch.tensor(ends)

    class EnoughEnded(StoppingCriteria):  # type: ignore[misc]
        """Looks at the tokens alone."""

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            ended = torch.isin(input_ids[:, width:], end.to(input_ids.device)).any(dim=1)
            return torch.full((len(input_ids),), bool(ended.sum() >= enough), device=input_ids.device)

    return EnoughEnded()
