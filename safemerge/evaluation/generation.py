"""Let an arm answer the prompts of a suite: greedily, batch by batch, each kept as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from pydantic import JsonValue

from safemerge.config.evaluation import GenerationConfig
from safemerge.evaluation.batches import FittingBatches
from safemerge.evaluation.engines import Arm
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.progress import progress
from safemerge.evaluation.suites import PLAIN_CHAT, ChatFormat
from safemerge.records import json_digest


def generate(
    arm: Arm,
    prompts: Mapping[str, str],
    *,
    max_new_tokens: int,
    batch_size: int,
    label: str = "prompts",
    chat: ChatFormat = PLAIN_CHAT,
) -> dict[str, str]:
    """Answer prompts as a user would ask them: chat template, one turn, greedy.

    Greedy means the likeliest token each time: sampling settings and penalties that the
    model ships with are left out. Where memory runs out a batch is halved and tried again.

    Args:
        arm: what answers.
        prompts: prompt id to text.
        max_new_tokens: length at which an answer is cut.
        batch_size: prompts answered at once.
        label: name in the progress.
        chat: how prompts are put into turns.

    Returns:
        Prompt id to answer, without special tokens, in the order of ``prompts``.

    Raises:
        EvaluationError: a prompt leaves no room for its answer, or memory does not suffice for one.
    """
    generation = GenerationConfig(max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers: dict[str, str] = {}
    for batch in answer_batches(arm, prompts, chat, generation, label):
        answers |= batch
    return {prompt_id: answers[prompt_id] for prompt_id in prompts}


def answer_batches(
    arm: Arm,
    prompts: Mapping[str, str],
    chat: ChatFormat,
    generation: GenerationConfig,
    label: str,
    journal: Journal | None = None,
    depends_on: Mapping[str, JsonValue] | None = None,
) -> Iterator[dict[str, str]]:
    """Answer prompts, a batch at each step; those that the journal holds are not answered again.

    Args:
        arm: what answers.
        prompts: prompt id to text.
        chat: how prompts are put into turns.
        generation: how many at once, and how long answers are.
        label: name in the progress.
        journal: where answers are kept.
        depends_on: what the answers depend on beside the texts of their batch, chat and length.

    Yields:
        Prompt id to answer, batch by batch.

    Raises:
        EvaluationError: as for :func:`generate`.
    """
    journal = journal or Journal()
    fitting = FittingBatches(label, f"one answer of {generation.max_new_tokens} tokens")
    batches = arm.batches(prompts, chat, generation)
    with progress(label, len(prompts)) as advance:
        for batch in batches:
            texts = [prompts[prompt_id] for prompt_id in batch]
            key = json_digest(
                {
                    "answers": texts,
                    "chat": list(chat),
                    "max_new_tokens": generation.max_new_tokens,
                    "depends_on": dict(depends_on or {}),
                }
            )
            answers = cast("list[str] | None", journal.get(key))
            if answers is None:
                answers = fitting(
                    batch,
                    lambda ids: arm.answer([prompts[i] for i in ids], chat, generation.max_new_tokens),
                )
                journal.put(key, list(answers))
            advance(len(batch))
            yield dict(zip(batch, answers, strict=True))
