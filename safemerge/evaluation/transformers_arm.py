"""Arms under transformers: the model once, with all adapters beside it by PEFT.

Adapters stay unmerged, as they are served: merging one into the weights first makes a batch of 64
only 2 % faster. One arm at a time computes, so that its batches are those it has alone; a batch
that mixes adapters reads the weights no less often than a batch of one arm that is as large.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safemerge.config.evaluation import GenerationConfig
from safemerge.core.lora import LoraPair
from safemerge.errors import CheckpointError, EvaluationError, MismatchError
from safemerge.evaluation.batches import by_length, check_room
from safemerge.evaluation.decoding import decode, end_tokens
from safemerge.evaluation.suites import PLAIN_CHAT, ChatFormat
from safemerge.storage.adapters import read_adapter
from safemerge.storage.checkpoints import Checkpoint


class TransformersArm(NamedTuple):
    """A model ready to be measured (:class:`safemerge.evaluation.engines.Arm`)."""

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

    def batches(
        self, prompts: Mapping[str, str], chat: ChatFormat, generation: GenerationConfig
    ) -> list[list[str]]:
        """Prompts of about one length together, the longest first.

        Raises:
            EvaluationError: a prompt leaves no room for its answer.
        """
        lengths = {name: len(encode(self.tokenizer, text, chat)) for name, text in prompts.items()}
        room = getattr(self.model.config, "max_position_embeddings", None)
        check_room(room, lengths, generation.max_new_tokens)
        return by_length(lengths, generation.batch_size)

    def answer(self, prompts: Sequence[str], chat: ChatFormat, max_new_tokens: int) -> list[str]:
        """Answer the texts of one batch.

        Raises:
            EvaluationError: neither model nor tokenizer has a token that ends an answer.
            torch.OutOfMemoryError: they are too many for the device.
        """
        if not end_tokens(self.model, self.tokenizer):
            raise EvaluationError("expected a token that ends an answer, got none from model and tokenizer")
        encoded = [encode(self.tokenizer, text, chat) for text in prompts]
        said = decode(self.model, self.tokenizer, encoded, max_new_tokens=max_new_tokens)
        texts: list[str] = self.tokenizer.batch_decode([row.tokens for row in said], skip_special_tokens=True)
        return texts

    def lm(self, batch_size: int, label: str) -> Any:
        """The arm as lm-eval's language model."""
        from safemerge.evaluation.lm import make_lm

        return make_lm(self, batch_size, label)


class TransformersModel:
    """A model in memory, with adapters on it of which one at a time is active."""

    def __init__(self, model: Any, tokenizer: Any, adapters: Mapping[str, str | None]) -> None:
        """Take what was loaded.

        Args:
            model: a ``PeftModel``, or a ``PreTrainedModel`` where no arm has an adapter.
            tokenizer: its tokenizer.
            adapters: arm to PEFT's name of its adapter.
        """
        self._arm = TransformersArm(model, tokenizer)
        self._adapters = adapters

    @classmethod
    def load(cls, model_dir: Path, adapter_dirs: Mapping[str, Path | None]) -> TransformersModel:
        """Load a model, and adapters beside it.

        Whether the adapters fit is read from the headers of the weights before they are loaded.
        The weights are held in fp32 on a CPU and in 16 bits on a GPU.

        Raises:
            CheckpointError, AdapterError, NonFiniteError, MismatchError, EvaluationError: as for
                :func:`safemerge.evaluation.engines.load`.
        """
        for adapter_dir in adapter_dirs.values():
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
        # PEFT's names hold no dots, which an arm's may.
        names = {arm: f"arm_{at}" for at, arm in enumerate(adapter_dirs)}
        for arm, folder in adapter_dirs.items():
            if folder is not None:
                model = _with_adapter(model, names[arm], folder, f"{folder} on {model_dir}")
        adapters = {arm: None if folder is None else names[arm] for arm, folder in adapter_dirs.items()}
        return cls(model.to(device).eval(), tokenizer, adapters)

    @contextmanager
    def arm(self, name: str) -> Iterator[TransformersArm]:
        """The model with the adapter of this arm, and no other, at work."""
        adapter = self._adapters[name]
        if adapter is not None:
            self._arm.model.set_adapter(adapter)
        alone = adapter is None and hasattr(self._arm.model, "disable_adapter")
        with self._arm.model.disable_adapter() if alone else nullcontext():
            yield self._arm


def load_arm(model_dir: Path, adapter_dir: Path | None = None) -> TransformersArm:
    """Load a model, and an adapter on it.

    Args:
        model_dir: folder of the aligned model, with its tokenizer.
        adapter_dir: folder of a PEFT LoRA adapter trained on it.

    Raises:
        CheckpointError, AdapterError, NonFiniteError, MismatchError, EvaluationError: as for
            :func:`safemerge.evaluation.engines.load`.
    """
    with TransformersModel.load(model_dir, {"arm": adapter_dir}).arm("arm") as arm:
        return arm


def _with_adapter(model: Any, name: str, adapter_dir: Path, where: str) -> Any:
    """Put an adapter on a loaded model, beside those that it has.

    That its file fits the model's files does not suffice: the loaded model may name its modules otherwise,
    and PEFT passes over what it does not find.

    Raises:
        MismatchError: PEFT cannot load the adapter, or would load a part of it.
    """
    from peft import PeftConfig, PeftModel, PeftModelForCausalLM

    config = PeftConfig.from_pretrained(str(adapter_dir))
    config.inference_mode = True
    try:
        peft_model = model if isinstance(model, PeftModel) else PeftModelForCausalLM(model, config, name)
        loaded = peft_model.load_adapter(str(adapter_dir), name)
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


def encode(tokenizer: Any, text: str, chat: ChatFormat = PLAIN_CHAT) -> list[int]:
    """The tokens of a prompt as one turn of a chat, up to where the answer begins."""
    messages = [{"role": "user", "content": text}]
    if chat.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": chat.system_prompt})
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=chat.template, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])
