"""Where architectures keep weights that are not (d_out, d_in) tensors under their module's own name.

Every entry has been compared with what transformers 5.23 saves and PEFT 0.21 loads; the tests do so again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

WRAPPERS = frozenset({"model", "transformer", "gpt_neox", "language_model", "text_model"})
"""Leading components of a path that say who holds the language model: they come and go.

Checkpoints without a head lack ``model.``, multimodal ones put ``language_model.`` before or after it.
"""

EMBEDDINGS = frozenset(
    {"embed_tokens", "embed_in", "word_embeddings", "wte", "wpe", "tokens_embed", "positions_embed"}
)
"""Modules that look rows up. As a map of one-hot tokens, d_in is the vocabulary: stored (d_in, d_out)."""

INPUT_EMBEDDINGS = ("embed_tokens", "embed_in", "word_embeddings", "wte", "tokens_embed")
"""Those of them that a head may be tied to."""

HEADS = frozenset({"lm_head", "embed_out"})
"""Modules that may have the input embedding for their weight."""

_CONV1D = frozenset({"c_attn", "q_attn", "c_fc", "c_proj"})
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


class ExpertLayout(NamedTuple):
    """How the experts of a mixture lie on disk, where transformers holds them as (experts, …) parameters."""

    gate_up: tuple[str, ...] = ()
    """Linear layers of one expert that make up its ``gate_up_proj``, in order along d_out.

    Empty where the disk holds the same stacked parameters.
    """
    down: tuple[str, ...] = ()
    """The same of ``down_proj``."""
    renamed: tuple[str, str] = ("", "")
    """Part of the path on disk, and in memory."""
    transposed: bool = False
    """Whether stacked parameters are (experts, d_in, d_out)."""


_GATE_UP_DOWN = ExpertLayout(("gate_proj", "up_proj"), ("down_proj",))
_W1_W3_W2 = ExpertLayout(("w1", "w3"), ("w2",), (".block_sparse_moe.", ".mlp."))

EXPERTS = {
    "deepseek_v2": _GATE_UP_DOWN,
    "deepseek_v3": _GATE_UP_DOWN,
    "ernie4_5_moe": _GATE_UP_DOWN,
    "flex_olmo": _GATE_UP_DOWN,
    "glm4_moe": _GATE_UP_DOWN,
    "gpt_oss": ExpertLayout(transposed=True),
    "hunyuan_v1_moe": _GATE_UP_DOWN,
    "jamba": _GATE_UP_DOWN,
    "minimax": _W1_W3_W2,
    "mixtral": _W1_W3_W2,
    "olmoe": _GATE_UP_DOWN,
    "phimoe": _W1_W3_W2,
    "qwen2_moe": _GATE_UP_DOWN,
    "qwen3_moe": _GATE_UP_DOWN,
    "qwen3_next": _GATE_UP_DOWN,
}

PASSED_OVER = frozenset(
    {
        "axk1", "axk2", "bailing_hybrid", "deepseek_ocr2", "deepseek_v4", "dots3_note_vision_encoder",
        "ernie4_5_vl_moe", "flint", "glm5_next", "glm5_next_text", "hy_v3", "jamba", "kimi_k25",
        "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "mimo_v2_flash", "minimax_m3_vl",
        "mistral_large4_text", "nemotron_h", "phimoe", "qwen2_moe", "qwen3_5_moe_text",
        "qwen4_exp_text",
    }
)  # fmt: skip
"""Models whose experts transformers stacks, while PEFT 0.21 does not turn adapters of single ones into such.

PEFT turns the names of their tensors, but not their config, and then passes over the tensors without a word.
"""

EXPERT = re.compile(r"(?P<container>.+\.experts)\.(?P<parameter>gate_up_proj|down_proj)\.(?P<index>\d+)")
"""Key of one expert's update where an adapter holds those of all experts in one."""

LINEAR_EXPERT = re.compile(r".+\.experts\.\d+\.\w+")
"""Path of a linear layer of one expert."""

EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
"""Stacked parameters in the order in which transformers declares them, and PEFT wraps them."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the language model, where it is part of a larger one; else the config itself."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def model_type(config: Mapping[str, Any]) -> str:
    """Kind of the language model."""
    return str(text_config(config).get("model_type") or config.get("model_type") or "unknown")


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a head that has no tensor is the input embedding: it is unless a config denies it."""
    return all(part.get("tie_word_embeddings") is not False for part in (config, text_config(config)))


def is_transposed(kind: str, module: str) -> bool:
    """Whether a module's weight is stored as (d_in, d_out)."""
    leaf = module.rpartition(".")[2]
    return leaf in EMBEDDINGS or (kind in _CONV1D_MODELS and leaf in _CONV1D)


def stem(kind: str, path: str) -> str:
    """What is left of a path when it does not matter who holds the language model."""
    parts = path.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    on_disk, in_memory = EXPERTS[kind].renamed if kind in EXPERTS else ("", "")
    path = ".".join(parts)
    return path.replace(on_disk, in_memory) if on_disk else path
