"""Arms behind an OpenAI-compatible server: vLLM's own with LoRA modules by name, llama.cpp, and others.

Answers come as chat completions at temperature 0, of which the server applies the chat template. Utility
comes by lm-eval's own clients: ``local-chat-completions`` where a task lets the model write, and
``local-completions`` where it scores given answers, for which the server must return the
log-probabilities of a prompt (``echo`` with ``logprobs``, as vLLM does).

Which weights answer under a name is the server's word. The adapter's folder is read all the same: that
it fits the model, and its digest, are those of the report. A server may fill in what a request leaves
out from the model's own settings (vLLM does, unless started with ``--generation-config vllm``); what it
should not is said by ``endpoint.request``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.config.endpoints import EndpointConfig
from safemerge.config.evaluation import EvaluationConfig, GenerationConfig
from safemerge.errors import CheckpointError, ConfigError, EvaluationError
from safemerge.evaluation.batches import check_room
from safemerge.evaluation.endpoint_client import Body, EndpointClient, Unreadable
from safemerge.evaluation.lm import lm_eval_log_level
from safemerge.evaluation.suites import PLAIN_CHAT, ChatFormat
from safemerge.evaluation.transformers_arm import encode, fitting_pairs
from safemerge.evaluation.utility import output_types

WRITES = "generate_until"
"""Output type of lm-eval's tasks that let the model write; all others score what is given."""


class EndpointArm(NamedTuple):
    """A name on a server, ready to be measured (:class:`safemerge.evaluation.engines.Arm`)."""

    client: EndpointClient
    config: EndpointConfig
    served_as: str
    """Its name there."""
    tokenizer: Any
    """That of the aligned model's folder: prompts are measured by it, and given answers put into tokens."""
    room: int | None
    """Positions of the model; None where its config states none."""
    writes: bool
    """Whether the utility task lets the model write alone."""

    @property
    def engine(self) -> str:
        """Name of what computes."""
        return "endpoint"

    @property
    def device(self) -> str:
        """Kind of device that it is on: unknown here."""
        return "server"

    @property
    def dtype(self) -> str:
        """Number format of its weights: unknown here."""
        return "server"

    def batches(
        self, prompts: Mapping[str, str], chat: ChatFormat, generation: GenerationConfig
    ) -> list[list[str]]:
        """Prompts in their order, as many together as are kept at once; the server forms its own batches.

        Raises:
            EvaluationError: a prompt leaves no room for its answer, or the suite has a chat template of its
                own, which no such server can be told.
        """
        if chat.template is not None:
            raise EvaluationError(
                f"{self.served_as} at {self.config.url}: expected suites in the model's own chat template, "
                "which a server applies, got one with another"
            )
        lengths = {name: len(encode(self.tokenizer, text, chat)) for name, text in prompts.items()}
        check_room(self.room, lengths, generation.max_new_tokens)
        names, size = list(prompts), max(generation.batch_size, self.config.concurrency)
        return [names[at : at + size] for at in range(0, len(names), size)]

    def answer(self, prompts: Sequence[str], chat: ChatFormat, max_new_tokens: int) -> list[str]:
        """Answer texts, several requests under way at once.

        Raises:
            ConfigError: the server's key is missing.
            EvaluationError: the server gives no answer to one. An empty text is an answer; none is not.
        """
        requests = {str(at): self._request(text, chat, max_new_tokens) for at, text in enumerate(prompts)}
        said = self.client.chat_all(requests, lambda _, text: text)
        if silent := [prompts[int(at)] for at, text in said.items() if isinstance(text, Unreadable)]:
            raise EvaluationError(
                f"{self.served_as} at {self.config.url}: expected a text as answer, got none to "
                f"{len(silent)} of {len(prompts)} prompts, the first {silent[0][:60]!r}"
            )
        return [str(said[str(at)]) for at in range(len(prompts))]

    def lm(self, batch_size: int, label: str) -> Any:
        """The arm as lm-eval's language model; requests go out one by one, several at once."""
        from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

        key = self.client.key()
        # It logs failed requests with all their headers, the key among them; the error names them without.
        logging.getLogger("lm_eval.models.api_models").setLevel(logging.CRITICAL)
        kind, path = (
            (LocalChatCompletion, "chat/completions") if self.writes else (LocalCompletionsAPI, "completions")
        )
        with lm_eval_log_level(logging.ERROR):
            return kind(
                model=self.served_as,
                base_url=f"{self.config.url.rstrip('/')}/{path}",
                tokenizer_backend=None if self.writes else "huggingface",
                tokenizer=None if self.writes else str(self.tokenizer.name_or_path),
                # lm-eval would send OPENAI_API_KEY where it is given no header.
                header={"Authorization": f"Bearer {key}"} if key else {"Content-Type": "application/json"},
                # One request at a time goes another way there, which is not tried again alike.
                num_concurrent=max(2, self.config.concurrency),
                max_retries=self.config.max_attempts,
                timeout=math.ceil(self.config.timeout_s),
                # One token is kept free there.
                **({} if self.room is None else {"max_length": self.room}),
            )

    def check(self, task: str | None) -> None:
        """Ask for one token, and for the scoring of a text where the task needs it, before work begins.

        Args:
            task: the utility task, for the message; None where none is measured.

        Raises:
            ConfigError: the server's key is missing.
            EvaluationError: the server knows no such model, or cannot score.
        """
        self.answer(["Hello"], PLAIN_CHAT, 1)
        if task is None or self.writes:
            return
        tokens = self.tokenizer("one two three", add_special_tokens=False).input_ids
        body = {"model": self.served_as, "prompt": tokens, "max_tokens": 1, "temperature": 0}
        needs = f"task {task} scores given answers, so the server must return log-probabilities of a prompt"
        try:
            reply = self.client.post("completions", body | {"logprobs": 1, "echo": True})
        except EvaluationError as error:
            raise EvaluationError(f"{needs}: {error}") from error
        try:
            found = [float(value) for value in reply["choices"][0]["logprobs"]["token_logprobs"][1:]]
            best = reply["choices"][0]["logprobs"]["top_logprobs"]
        except (LookupError, TypeError, ValueError):
            found, best = [], []
        if len(found) != len(tokens) or len(best) != len(tokens) + 1 or not all(map(math.isfinite, found)):
            raise EvaluationError(
                f"{needs} (echo and logprobs of {self.config.url}/completions): expected {len(tokens)}, "
                f"got {len(found)}; choose a task that lets the model write, or another server"
            )

    def _request(self, text: str, chat: ChatFormat, max_new_tokens: int) -> Body:
        messages = [{"role": "user", "content": text}]
        if chat.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": chat.system_prompt})
        return {
            **self.config.request,
            "model": self.served_as,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }


class EndpointModel:
    """A server, with a name on it for every arm."""

    def __init__(self, arms: Mapping[str, EndpointArm]) -> None:
        """Take the arms by name."""
        self._arms = arms

    @classmethod
    def load(
        cls,
        model_dir: Path,
        adapter_dirs: Mapping[str, Path | None],
        settings: EvaluationConfig,
        *,
        with_utility: bool = True,
    ) -> EndpointModel:
        """Find out that the server can do what will be asked of it.

        Args:
            model_dir: folder of the aligned model that the server should hold, for its tokenizer.
            adapter_dirs: arm to the folder of its adapter; None for the model alone.
            settings: the server, and the utility task.
            with_utility: whether that is measured.

        Raises:
            CheckpointError, AdapterError, NonFiniteError, MismatchError: as for
                :func:`safemerge.evaluation.engines.load`.
            ConfigError: an arm has no name on the server, or the server's key is missing.
            EvaluationError: the server does not answer, knows no such model, or cannot score what the
                utility task asks for; or the tokenizer has no chat template.
        """
        config = settings.endpoint
        if config is None:
            raise ConfigError("evaluation.endpoint: expected the server of engine endpoint, got none")
        if unnamed := sorted(adapter_dirs.keys() - config.models.keys()):
            raise ConfigError(
                f"evaluation.endpoint.models: expected a name on the server for every arm, got none for "
                f"{', '.join(unnamed)}"
            )
        for folder in adapter_dirs.values():
            fitting_pairs(model_dir, folder)
        tokenizer, room = _tokenizer_and_room(model_dir)
        utility = settings.utility
        types = output_types(utility.task, model_dir, utility.include_path) if with_utility else set()
        arms = {
            name: EndpointArm(
                EndpointClient(config, f"arm {name}, {config.models[name]} at {config.url}"),
                config,
                config.models[name],
                tokenizer,
                room,
                types == {WRITES} and utility.apply_chat_template,
            )
            for name in adapter_dirs
        }
        for arm in arms.values():
            arm.check(utility.task if with_utility else None)
        return cls(arms)

    @contextmanager
    def arm(self, name: str) -> Iterator[EndpointArm]:
        """One arm; nothing is loaded here for it."""
        yield self._arms[name]


def _tokenizer_and_room(model_dir: Path) -> tuple[Any, int | None]:
    """The model's tokenizer, and how many tokens it has positions for."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{model_dir}: expected a model with its tokenizer, got {error}") from error
    if tokenizer.chat_template is None:
        raise EvaluationError(f"{model_dir}: expected a tokenizer with a chat template, got none")
    return tokenizer, getattr(config, "max_position_embeddings", None)
