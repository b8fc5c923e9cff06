"""Arms under vLLM, where it is installed: faster than transformers on a GPU, and not the same to the bit.

lm-eval's own vLLM backend loads the model, with every adapter as a LoRA request; the answers to
judge come from the same engine, so the weights are held once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.config.evaluation import GenerationConfig
from safemerge.errors import EvaluationError
from safemerge.evaluation.batches import check_room
from safemerge.evaluation.lm import lm_eval_log_level
from safemerge.evaluation.suites import ChatFormat
from safemerge.evaluation.transformers_arm import device_and_dtype, encode, fitting_pairs

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank of an adapter."""

PROMPTS_AT_ONCE = 512
"""vLLM forms batches of its own from as many prompts; what it has answered is kept after each so many."""


class VllmArm(NamedTuple):
    """A model ready to be measured by vLLM (:class:`safemerge.evaluation.engines.Arm`)."""

    model: Any
    """lm-eval's ``VLLM``, which holds the engine, the tokenizer and the adapter that is at work."""
    device: str
    dtype: str

    @property
    def engine(self) -> str:
        """Name of what computes."""
        return "vllm"

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""
        return self.model.tokenizer

    def batches(
        self, prompts: Mapping[str, str], chat: ChatFormat, generation: GenerationConfig
    ) -> list[list[str]]:
        """Prompts in their order, many at once.

        Raises:
            EvaluationError: a prompt leaves no room for its answer.
        """
        lengths = {name: len(encode(self.tokenizer, text, chat)) for name, text in prompts.items()}
        check_room(self.model.max_length, lengths, generation.max_new_tokens)
        names = list(prompts)
        return [names[at : at + PROMPTS_AT_ONCE] for at in range(0, len(names), PROMPTS_AT_ONCE)]

    def answer(self, prompts: Sequence[str], chat: ChatFormat, max_new_tokens: int) -> list[str]:
        """Answer texts with the adapter that is at work."""
        from vllm import SamplingParams, TokensPrompt

        outputs = self.model.model.generate(
            [TokensPrompt(prompt_token_ids=encode(self.tokenizer, text, chat)) for text in prompts],
            sampling_params=SamplingParams(temperature=0, max_tokens=max_new_tokens),
            lora_request=self.model.lora_request,
            use_tqdm=False,
        )
        return [output.outputs[0].text for output in outputs]

    def lm(self, batch_size: int, label: str) -> Any:
        """The arm as lm-eval's language model; vLLM forms its own batches."""
        return self.model


class VllmModel:
    """A model in vLLM, with a LoRA request for every adapter."""

    def __init__(self, arm: VllmArm, requests: Mapping[str, Any]) -> None:
        """Take what was loaded.

        Args:
            arm: the engine.
            requests: arm to the LoRA request of its adapter; None for the model alone.
        """
        self._arm = arm
        self._requests = requests

    @classmethod
    def load(cls, model_dir: Path, adapter_dirs: Mapping[str, Path | None]) -> VllmModel:
        """Load a model into vLLM, which fetches adapters as they are asked for.

        Whether they fit is read from the headers of the weights before.

        Raises:
            CheckpointError, AdapterError, NonFiniteError, MismatchError: as for
                :func:`safemerge.evaluation.engines.load`.
            EvaluationError: an adapter's rank is more than vLLM takes, vLLM cannot load the model, or
                the tokenizer has no chat template.
        """
        pairs = {arm: fitting_pairs(model_dir, folder) for arm, folder in adapter_dirs.items()}
        ranks = {
            arm: lora_rank(max(pair.rank for pair in of.values()), str(adapter_dirs[arm]))
            for arm, of in pairs.items()
            if of
        }
        device, dtype = device_and_dtype()
        options: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "batch_size": "auto"}
        if ranks:
            # lm-eval turns LoRA on only where it is given an adapter; which one is asked for is set by `arm`.
            first = str(adapter_dirs[next(iter(ranks))])
            options |= {"lora_local_path": first, "max_lora_rank": max(ranks.values())}
        try:
            from lm_eval.models.vllm_causallms import VLLM

            with lm_eval_log_level(logging.ERROR):
                lm = VLLM(pretrained=str(model_dir), **options)
        except Exception as error:
            kind = type(error).__name__
            raise EvaluationError(f"{model_dir}: expected vLLM to load it, got {kind}: {error}") from error
        if lm.tokenizer.chat_template is None:
            raise EvaluationError(f"{model_dir}: expected a tokenizer with a chat template, got none")
        return cls(VllmArm(lm, device, options["dtype"]), _requests(adapter_dirs))

    @contextmanager
    def arm(self, name: str) -> Iterator[VllmArm]:
        """The model with the adapter of this arm at work."""
        self._arm.model.lora_request = self._requests[name]
        yield self._arm


def _requests(adapter_dirs: Mapping[str, Path | None]) -> dict[str, Any]:
    """Arm to LoRA request; vLLM tells adapters apart by their number."""
    from vllm.lora.request import LoRARequest

    return {
        arm: folder and LoRARequest(arm, number, str(folder))
        for number, (arm, folder) in enumerate(adapter_dirs.items(), start=1)
    }


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
