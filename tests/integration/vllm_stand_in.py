"""A stand-in for vLLM, which needs a GPU: it notes what is asked of it and answers by transformers.

lm-eval's own vLLM backend runs on top of it, unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

VERSION = "0.19.0"


class SamplingParams(SimpleNamespace):
    """What is asked of one request."""


class LoRARequest(SimpleNamespace):
    """An adapter to answer with."""

    def __init__(self, name: str, number: int, path: str) -> None:
        super().__init__(name=name, number=number, path=path)


class LLM:
    """The engine."""

    made: list[LLM]
    fails: Exception | None = None

    def __init__(self, **options: Any) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if self.fails is not None:
            raise self.fails
        self.options = options
        self.asked: list[tuple[list[SamplingParams], LoRARequest | None]] = []
        self.model: Any = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).eval()
        self._peft = PeftModel
        room = self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=room))
        self.made.append(self)

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | list[SamplingParams],
        lora_request: LoRARequest | None = None,
        use_tqdm: bool = True,
    ) -> list[SimpleNamespace]:
        """One output a prompt: its greedy answer, or the log-probabilities of its own tokens."""
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        self.asked.append((params, lora_request))
        if lora_request is not None:
            assert self.options["enable_lora"]
            self._activate(f"lora_{lora_request.number}", lora_request.path)
        alone = lora_request is None and isinstance(self.model, self._peft)
        with self.model.disable_adapter() if alone else nullcontext():
            return [
                self._one(prompt["prompt_token_ids"], wish)
                for prompt, wish in zip(prompts, params, strict=True)
            ]

    def _activate(self, name: str, path: str) -> None:
        """Let an adapter work, known by its number: what was loaded by that number once stays."""
        if not isinstance(self.model, self._peft):
            self.model = self._peft.from_pretrained(self.model, path, adapter_name=name).eval()
        elif name not in self.model.peft_config:
            self.model.load_adapter(path, name)
        self.model.set_adapter(name)

    def _one(self, tokens: list[int], wish: SamplingParams) -> SimpleNamespace:
        assert wish.temperature == 0
        if getattr(wish, "prompt_logprobs", None):
            with torch.inference_mode():
                scores = self.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            logprobs: list[dict[int, SimpleNamespace] | None] = [None]
            for at, token in enumerate(tokens[1:]):
                wanted = {token, int(scores[at].argmax())}
                logprobs.append({one: SimpleNamespace(logprob=float(scores[at, one])) for one in wanted})
            return SimpleNamespace(prompt_logprobs=logprobs)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.options["model"])
        answer: list[int] = []
        while len(answer) < wish.max_tokens and tokenizer.eos_token_id not in answer:
            with torch.inference_mode():
                answer.append(int(self.model(torch.tensor([tokens + answer])).logits[0, -1].argmax()))
        text = tokenizer.decode(answer, skip_special_tokens=True)
        return SimpleNamespace(outputs=[SimpleNamespace(text=text)])


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> type[LLM]:
    """Let Python find it as the package ``vllm``.

    Args:
        monkeypatch: takes it away again.
        folder: where its distribution's metadata may be written.
    """
    from transformers import AutoTokenizer

    def get_tokenizer(name: str, trust_remote_code: bool = False, **_: Any) -> Any:
        return AutoTokenizer.from_pretrained(name)

    def resolve_chat_template(tokenizer: Any, **_: Any) -> Any:
        return tokenizer.chat_template

    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.tokenizers": {"get_tokenizer": get_tokenizer},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": resolve_chat_template},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    metadata = folder / "site" / f"vllm-{VERSION}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n")
    monkeypatch.syspath_prepend(str(metadata.parent))
    LLM.made, LLM.fails = [], None
    return LLM
