"""An arm under vLLM, where it is installed: faster than transformers on a GPU, and not the same to the bit.

lm-eval's own vLLM backend loads the model, with the adapter as a LoRA request; the answers to
judge come from the same engine, so the weights are held once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import EvaluationError
from safemerge.evaluation.generation import check_room, device_and_dtype, encode, fitting_pairs
from safemerge.evaluation.lm import lm_eval_log_level
from safemerge.evaluation.progress import progress
from safemerge.evaluation.suites import PLAIN_CHAT, ChatFormat

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of an adapter."""


class VllmArm(NamedTuple):
    """A model ready to be measured by vLLM."""

    lm: Any
    """lm-eval's ``VLLM``, which holds the engine, the tokenizer and the adapter."""
    device: str
    dtype: str

    @property
    def engine(self) -> str:
        """Name of what computes."""
        return "vllm"

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""
        return self.lm.tokenizer


def load_vllm_arm(model_dir: Path, adapter_dir: Path | None = None) -> VllmArm:
    """Load a model into vLLM, and an adapter beside it.

    Whether the adapter fits is read from the headers of the weights before they are loaded.

    Args:
        model_dir: folder of the aligned model, with its tokenizer.
        adapter_dir: folder of a PEFT LoRA adapter trained on it.

    Raises:
        AdapterError, CheckpointError, MismatchError, NonFiniteError: as for
            :func:`safemerge.evaluation.generation.load_arm`.
        EvaluationError: the adapter's rank is more than vLLM takes, vLLM cannot load the model, or
            the tokenizer has no chat template.
    """
    pairs = fitting_pairs(model_dir, adapter_dir)
    device, dtype = device_and_dtype()
    options: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "batch_size": "auto"}
    if pairs:
        rank = lora_rank(max(pair.rank for pair in pairs.values()), str(adapter_dir))
        options |= {"lora_local_path": str(adapter_dir), "max_lora_rank": rank}
    try:
        from lm_eval.models.vllm_causallms import VLLM

        with lm_eval_log_level(logging.ERROR):
            lm = VLLM(pretrained=str(model_dir), **options)
    except Exception as error:
        kind = type(error).__name__
        raise EvaluationError(f"{model_dir}: expected vLLM to load it, got {kind}: {error}") from error
    if lm.tokenizer.chat_template is None:
        raise EvaluationError(f"{model_dir}: expected a tokenizer with a chat template, got none")
    return VllmArm(lm, device, options["dtype"])


def lora_rank(rank: int, where: str) -> int:
    """The smallest largest rank that vLLM can be told for an adapter of this one.

    Raises:
        EvaluationError: there is none.

    >>> lora_rank(24, "adapter")
    32
    """
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise EvaluationError(f"{where}: expected a rank of at most {LORA_RANKS[-1]} for vLLM, got {rank}")


def generate_with_vllm(
    arm: VllmArm,
    prompts: Mapping[str, str],
    *,
    max_new_tokens: int,
    label: str = "prompts",
    chat: ChatFormat = PLAIN_CHAT,
) -> dict[str, str]:
    """Answer prompts as :func:`safemerge.evaluation.generation.generate` does; vLLM forms the batches.

    Args:
        arm: what answers.
        prompts: prompt id to text.
        max_new_tokens: length at which an answer is cut.
        label: name in the progress.
        chat: how prompts are put into turns.

    Returns:
        Prompt id to answer, without special tokens, in the order of ``prompts``.

    Raises:
        EvaluationError: a prompt leaves no room for its answer.
    """
    from vllm import SamplingParams, TokensPrompt

    encoded = {prompt_id: encode(arm.tokenizer, text, chat) for prompt_id, text in prompts.items()}
    check_room(arm.lm.max_length, encoded, max_new_tokens)
    with progress(label, len(encoded)) as advance:
        outputs = arm.lm.model.generate(
            [TokensPrompt(prompt_token_ids=tokens) for tokens in encoded.values()],
            sampling_params=SamplingParams(temperature=0, max_tokens=max_new_tokens),
            lora_request=arm.lm.lora_request,
            use_tqdm=False,
        )
        advance(len(encoded))
    return {prompt_id: output.outputs[0].text for prompt_id, output in zip(encoded, outputs, strict=True)}
