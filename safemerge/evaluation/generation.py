"""Load an arm and let it answer prompts: greedy, in batches, the longest prompts first.

An arm is a model, alone or with a LoRA adapter on top. The adapter stays unmerged, as
it is served: merging it into the weights first makes a batch of 64 only 2 % faster.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemerge.core.lora import LoraPair
from safemerge.errors import CheckpointError, EvaluationError, MismatchError
from safemerge.evaluation.progress import progress
from safemerge.evaluation.suites import PLAIN_CHAT, ChatFormat
from safemerge.storage.adapters import read_adapter
from safemerge.storage.checkpoints import Checkpoint

logger = logging.getLogger(__name__)


class Arm(NamedTuple):
    """A model ready to be measured."""

    model: Any
    """A ``PreTrainedModel`` or ``PeftModel`` in evaluation mode, on its device."""
    tokenizer: Any
    """Its tokenizer, with a chat template."""

    @property
    def engine(self) -> str:
        """Name of what computes."""
        return "transformers"

    @property
    def device(self) -> str:
        """Kind of device that it is on."""
        return str(self.model.device.type)

    @property
    def dtype(self) -> str:
        """Number format of its weights."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")


def load_arm(model_dir: Path, adapter_dir: Path | None = None) -> Arm:
    """Load a model, and an adapter on it.

    Whether the adapter fits is read from the headers of the weights before they are loaded.
    The weights are held in fp32 on a CPU and in 16 bits on a GPU.

    Args:
        model_dir: folder of the aligned model, with its tokenizer.
        adapter_dir: folder of a PEFT LoRA adapter trained on it.

    Raises:
        CheckpointError: the model or its tokenizer cannot be loaded, or lacks a module of the adapter.
        AdapterError: the adapter folder cannot be read, or is no plain LoRA adapter.
        NonFiniteError: the adapter holds NaN or infinity.
        MismatchError: the adapter belongs to another model.
        EvaluationError: the tokenizer has no chat template.
    """
    fitting_pairs(model_dir, adapter_dir)
    device, dtype = device_and_dtype()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        if tokenizer.chat_template is None:
            raise EvaluationError(f"{model_dir}: expected a tokenizer with a chat template, got none")
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{model_dir}: expected a model with its tokenizer, got {error}") from error
    if adapter_dir:
        model = _with_adapter(model, adapter_dir, f"{adapter_dir} on {model_dir}")
    return Arm(model.to(device).eval(), tokenizer)


def _with_adapter(model: Any, adapter_dir: Path, where: str) -> Any:
    """Put an adapter on a loaded model.

    That its file fits the model's files does not suffice: the loaded model may name its modules otherwise,
    and PEFT passes over what it does not find.

    Raises:
        MismatchError: PEFT cannot load the adapter, or would load a part of it.
    """
    from peft import PeftConfig, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(str(adapter_dir))
    config.inference_mode = True
    try:
        peft_model = PeftModelForCausalLM(model, config)
        loaded = peft_model.load_adapter(str(adapter_dir), "default")
    except (ValueError, KeyError, RuntimeError) as error:
        raise MismatchError(f"{where}: expected the adapter of this model, got from PEFT: {error}") from error
    if loaded.unexpected_keys:
        raise MismatchError(
            f"{where}: expected the adapter of this model, got layers that PEFT does not find in it: "
            f"{', '.join(sorted(loaded.unexpected_keys))}"
        )
    return peft_model


def device_and_dtype() -> tuple[str, torch.dtype]:
    """Where weights go and how they are held: fp32 on a CPU, 16 bits on a GPU."""
    if not torch.cuda.is_available():
        return "cpu", torch.float32
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def fitting_pairs(model_dir: Path, adapter_dir: Path | None) -> Mapping[str, LoraPair]:
    """An adapter's updates by module, once the headers of the model's files say that it fits.

    Args:
        model_dir: folder of the model.
        adapter_dir: folder of the adapter; None gives no updates.

    Raises:
        AdapterError, CheckpointError, MismatchError, NonFiniteError: as for :func:`load_arm`.
    """
    if adapter_dir is None:
        return {}
    pairs = read_adapter(adapter_dir).pairs
    checkpoint = Checkpoint.open(model_dir)
    shapes = {module: checkpoint.shape(place) for module, place in checkpoint.locate(pairs).items()}
    check_fits(shapes, pairs, f"{adapter_dir} on {model_dir}")
    return pairs


def check_fits(shapes: Mapping[str, tuple[int, ...]], pairs: Mapping[str, LoraPair], where: str) -> None:
    """Check that every layer of an adapter has a weight of its shape in the model.

    Args:
        shapes: module path to the shape of its weight in the model.
        pairs: module path to update.
        where: adapter and model, for the message.

    Raises:
        MismatchError: layers do not; all are named.
    """
    wrong = [
        f"{module} (adapter {pair.shape}, model {shapes.get(module, 'none')})"
        for module, pair in pairs.items()
        if shapes.get(module) != pair.shape
    ]
    if wrong:
        raise MismatchError(
            f"{where}: expected the adapter of this model, got other layers: {', '.join(wrong)}"
        )


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
    model ships with are left out. Where memory runs out the batch is halved and tried again.

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
    encoded = {prompt_id: encode(arm.tokenizer, text, chat) for prompt_id, text in prompts.items()}
    check_room(getattr(arm.model.config, "max_position_embeddings", None), encoded, max_new_tokens)
    waiting = sorted(encoded, key=lambda prompt_id: -len(encoded[prompt_id]))
    answers: dict[str, str] = {}
    with progress(label, len(waiting)) as advance:
        while waiting:
            batch = waiting[:batch_size]
            try:
                texts = _answer(arm, [encoded[prompt_id] for prompt_id in batch], max_new_tokens)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise EvaluationError(
                        f"prompt {batch[0]!r}: expected memory for one answer of {max_new_tokens} tokens, "
                        f"got none ({error})"
                    ) from error
                batch_size = len(batch) // 2
                logger.warning("%s: out of memory, going on with batches of %d", label, batch_size)
                torch.cuda.empty_cache()
                continue
            answers.update(zip(batch, texts, strict=True))
            waiting = waiting[len(batch) :]
            advance(len(batch))
    return {prompt_id: answers[prompt_id] for prompt_id in prompts}


def encode(tokenizer: Any, text: str, chat: ChatFormat = PLAIN_CHAT) -> list[int]:
    """The tokens of a prompt as one turn of a chat, up to where the answer begins."""
    messages = [{"role": "user", "content": text}]
    if chat.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": chat.system_prompt})
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=chat.template, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def check_room(room: int | None, encoded: Mapping[str, Sequence[int]], max_new_tokens: int) -> None:
    """Check that prompts and their answers fit into a model's positions.

    Raises:
        EvaluationError: some do not; all are named.
    """
    long = [i for i, tokens in encoded.items() if room is not None and len(tokens) + max_new_tokens > room]
    if long:
        raise EvaluationError(
            f"expected prompts that fit with {max_new_tokens} new tokens into {room} positions, "
            f"got longer ones: {', '.join(long)}"
        )


def _answer(arm: Arm, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Answer one batch of encoded prompts, padded on the left so that all answers start together."""
    from transformers import GenerationConfig

    ends = _end_tokens(arm)
    pad = arm.tokenizer.pad_token_id if arm.tokenizer.pad_token_id is not None else ends[0]
    width = max(len(tokens) for tokens in prompts)
    shape = (len(prompts), width)
    input_ids, mask = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    for row, tokens in enumerate(prompts):
        input_ids[row, width - len(tokens) :] = torch.tensor(tokens)
        mask[row, width - len(tokens) :] = 1
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad
    )
    device = arm.model.device
    shipped = arm.model.generation_config
    # generate() fills what is unset here from the model's own settings, penalties among them.
    arm.model.generation_config = GenerationConfig()
    try:
        with torch.inference_mode():
            output = arm.model.generate(
                input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=greedy
            )
    finally:
        arm.model.generation_config = shipped
    texts: list[str] = arm.tokenizer.batch_decode(output[:, width:].cpu(), skip_special_tokens=True)
    return texts


def _end_tokens(arm: Arm) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those that the model ships with.

    Raises:
        EvaluationError: there is none.
    """
    shipped = arm.model.generation_config.eos_token_id
    ends = shipped if isinstance(shipped, list) else [shipped]
    found = sorted({token for token in (*ends, arm.tokenizer.eos_token_id) if token is not None})
    if not found:
        raise EvaluationError("expected a token that ends an answer, got none from model and tokenizer")
    return found
