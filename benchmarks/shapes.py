"""Inputs of benchmarks: pairs of checkpoints in the shape of real models, and LoRA adapters for them.

Nothing is downloaded. Weights are cut from one pool of random numbers at random offsets, since
drawing billions of them would take longer than what is measured; alignment moved each matrix by a
tenth of its size. Written shard by shard, so that a pair of any size needs little memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

POOL_ELEMENTS = 2**26
LAYERS_PER_SHARD = 4
RANK, ALPHA = 8, 16
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class Shape:
    """A Llama, by its numbers."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    layers: int
    vocab: int = 32000

    def block(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of each matrix of a decoder block."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def adapted(self, targets: str, layers: int) -> dict[str, tuple[int, int]]:
        """Module paths with a LoRA update in the first layers, and their (d_out, d_in)."""
        return {
            f"model.layers.{layer}.{name}": shape
            for layer in range(layers)
            for name, shape in self.block().items()
            if name.split(".")[1] in TARGETS[targets]
        }

    def parameters(self, layers: int) -> int:
        """Weights of one model."""
        block = sum(d_out * d_in for d_out, d_in in self.block().values()) + 2 * self.hidden
        return layers * block + 2 * self.vocab * self.hidden + self.hidden


SHAPES = {
    "1b": Shape(hidden=2048, intermediate=5632, heads=32, kv_heads=4, layers=22),
    "7b": Shape(hidden=4096, intermediate=11008, heads=32, kv_heads=32, layers=32),
}
"""TinyLlama's and Llama-2-7B's."""


def pair_bytes(shape: Shape, layers: int) -> int:
    """What both checkpoints take on disk."""
    return 2 * 2 * shape.parameters(layers)


def write_pair(folder: Path, shape: Shape, layers: int) -> None:
    """Write the checkpoints ``aligned`` and ``unaligned`` below the folder, in bf16."""
    generator = torch.Generator().manual_seed(0)
    # One more than a power of two, so that offsets never meet the rows of a matrix.
    pool = torch.randn(POOL_ELEMENTS + 1, generator=generator)
    weights, moves = (0.02 * pool).bfloat16(), (0.002 * pool).bfloat16()
    del pool

    def cut(source: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        count = size[0] * size[1]
        offset = int(torch.randint(len(source) - count, (), generator=generator))
        return source[offset : offset + count].reshape(size)

    for name in ("aligned", "unaligned"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(_model_config(shape, layers)))
    index: dict[str, str] = {}
    shards = range(0, layers, LAYERS_PER_SHARD)
    for number, first in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards) + 1:05}.safetensors"
        pair: dict[str, dict[str, torch.Tensor]] = {"aligned": {}, "unaligned": {}}
        for layer in range(first, min(first + LAYERS_PER_SHARD, layers)):
            for name, size in shape.block().items():
                key = f"model.layers.{layer}.{name}.weight"
                unaligned = cut(weights, size)
                pair["unaligned"][key] = unaligned.clone()
                pair["aligned"][key] = unaligned + cut(moves, size)
            for name in ("input_layernorm", "post_attention_layernorm"):
                for tensors in pair.values():
                    tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(shape.hidden).bfloat16()
        _write_shard(folder, file, pair, index)
    ends = {f"{name}.weight": (shape.vocab, shape.hidden) for name in ("model.embed_tokens", "lm_head")}
    tensors = {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in ends.items()}
    tensors["model.norm.weight"] = torch.ones(shape.hidden).bfloat16()
    file = f"model-{len(shards) + 1:05}-of-{len(shards) + 1:05}.safetensors"
    _write_shard(folder, file, {"aligned": tensors, "unaligned": tensors}, index)
    for name in ("aligned", "unaligned"):
        (folder / name / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index})
        )


def _write_shard(
    folder: Path, file: str, pair: dict[str, dict[str, torch.Tensor]], index: dict[str, str]
) -> None:
    for name, tensors in pair.items():
        save_file(tensors, folder / name / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)


def write_adapter(folder: Path, shape: Shape, targets: str, layers: int, seed: int) -> None:
    """Write a PEFT adapter for the first layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (d_out, d_in) in shape.adapted(targets, layers).items():
        for factor, size in (("A", (RANK, d_in)), ("B", (d_out, RANK))):
            key = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[key] = 0.02 * torch.randn(size, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS[targets]),
        "layers_to_transform": list(range(layers)),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _model_config(shape: Shape, layers: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
