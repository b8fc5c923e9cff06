"""What computes answers: one interface for all engines, a file for each.

An engine loads the model once. Its arms, the model alone and the model with one adapter each, are
used one after the other; an arm's figures do not depend on which others there are.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from safemerge.config.evaluation import Engine, EvaluationConfig, GenerationConfig
from safemerge.evaluation.suites import ChatFormat


class Arm(Protocol):
    """A model ready to be measured, alone or with an adapter on it."""

    @property
    def engine(self) -> str:
        """Name of what computes."""
        ...

    @property
    def device(self) -> str:
        """Kind of device that it is on."""
        ...

    @property
    def dtype(self) -> str:
        """Number format of its weights."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with a chat template."""
        ...

    def batches(
        self, prompts: Mapping[str, str], chat: ChatFormat, generation: GenerationConfig
    ) -> list[list[str]]:
        """Which prompts are answered together; the same each time.

        Args:
            prompts: prompt id to text.
            chat: how prompts are put into turns.
            generation: how many at once, and how long answers are.

        Raises:
            EvaluationError: a prompt leaves no room for its answer.
        """
        ...

    def answer(self, prompts: Sequence[str], chat: ChatFormat, max_new_tokens: int) -> list[str]:
        """Answer the texts of one batch greedily, without special tokens, in their order.

        Raises:
            torch.OutOfMemoryError: they are too many for the device; fewer are asked then.
        """
        ...

    def lm(self, batch_size: int, label: str) -> Any:
        """The arm as lm-eval's language model.

        Args:
            batch_size: requests scored at once.
            label: name in the progress.
        """
        ...


class LoadedModel(Protocol):
    """A model in memory, with the adapters of all arms beside it."""

    def arm(self, name: str) -> AbstractContextManager[Arm]:
        """One arm, to be used inside the block; other arms are not used meanwhile."""
        ...


_PLACES = {
    Engine.TRANSFORMERS: ("transformers_arm", "TransformersModel"),
    Engine.VLLM: ("vllm_arm", "VllmModel"),
}
"""Engine to module and class, whose ``load`` makes it."""


def load(
    settings: EvaluationConfig,
    model: Path,
    adapters: Mapping[str, Path | None],
    *,
    with_utility: bool = True,
) -> LoadedModel:
    """Load a model, and adapters beside it; whether they fit is looked at first.

    Args:
        settings: what computes, and what is measured.
        model: folder of the aligned model, with its tokenizer.
        adapters: name of an arm to its adapter's folder; None for the model alone.
        with_utility: whether its utility will be asked for; a server is tried at that.

    Raises:
        CheckpointError: the model or its tokenizer cannot be loaded, or lacks a module of an adapter.
        AdapterError: an adapter's folder cannot be read, or is no plain LoRA adapter.
        NonFiniteError: an adapter holds NaN or infinity.
        MismatchError: an adapter belongs to another model.
        EvaluationError: the tokenizer has no chat template, or the engine cannot take model or adapter.
    """
    if settings.engine is Engine.ENDPOINT:
        from safemerge.evaluation.endpoint_arm import EndpointModel

        return EndpointModel.load(model, adapters, settings, with_utility=with_utility)
    module, name = _PLACES[settings.engine]
    made: LoadedModel = getattr(importlib.import_module(f"safemerge.evaluation.{module}"), name).load(
        model, adapters
    )
    return made
