"""Weights found by the names that architectures give them."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.errors import MismatchError, UnsupportedAdapterError
from safemerge.storage.weight_places import Part, PlaceFinder, WeightPlace

MATRIX = (4, 4)
"""Square: the shape tells nothing of which dimension is which."""


def find(module: str, names: list[str], **config: Any) -> WeightPlace | None:
    return PlaceFinder(dict.fromkeys(names, MATRIX), config).find([module]).get(module)


Q = "layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "stored", ["", "model.", "model.language_model.", "language_model.model.", "transformer."]
)
@pytest.mark.parametrize("adapted", ["", "model.", "model.language_model.", "language_model.model."])
def test_it_does_not_matter_who_holds_the_language_model(stored: str, adapted: str):
    name = f"{stored}{Q}.weight"
    assert find(adapted + Q, [name, f"model.vision_tower.{Q}.weight"]) == (Part(name),)


def test_another_tower_is_not_the_language_model():
    assert find(f"model.vision_tower.{Q}", [f"model.language_model.{Q}.weight"]) is None
    assert find(Q, [f"model.vision_tower.{Q}.weight"]) is None


def test_the_tensor_of_the_very_name_is_preferred_and_a_doubt_is_named():
    names = [f"model.{Q}.weight", f"language_model.{Q}.weight"]
    assert find(f"model.{Q}", names) == (Part(names[0]),)
    with pytest.raises(
        MismatchError, match=f"^{Q}.weight: expected one tensor, got language_model.* and model"
    ):
        find(Q, names)


@pytest.mark.parametrize(
    ("kind", "module", "transposed"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn", True),
        ("gpt2", "transformer.h.0.mlp.c_proj", True),
        ("gpt2", "lm_head", False),
        ("gpt_bigcode", "transformer.h.0.attn.c_attn", False),
        ("gpt2", "transformer.wte", True),
        ("llama", "model.embed_tokens", True),
        ("llama", "model.layers.0.self_attn.q_proj", False),
    ],
)
def test_the_architecture_says_what_is_stored_the_other_way_round(kind: str, module: str, transposed: bool):
    name = f"{module}.weight"
    assert find(module, [name], model_type=kind) == (Part(name, transposed=transposed),)


@pytest.mark.parametrize(
    "embedding", ["model.embed_tokens", "transformer.wte", "language_model.model.embed_tokens"]
)
@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": True}, {}, {"text_config": {"model_type": "llama"}}]
)
def test_a_tied_head_has_the_weight_of_the_embedding_as_it_is_stored(embedding: str, config: dict[str, Any]):
    assert find("lm_head", [f"{embedding}.weight"], **config) == (Part(f"{embedding}.weight"),)


@pytest.mark.parametrize(
    "config", [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}]
)
def test_a_head_that_is_not_tied_is_missing(config: dict[str, Any]):
    assert find("lm_head", ["model.embed_tokens.weight"], **config) is None


def test_a_head_of_its_own_is_preferred():
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    assert find("lm_head", names, tie_word_embeddings=True) == (Part("lm_head.weight"),)


def test_an_expert_of_which_a_half_is_missing_is_missing():
    key = "model.layers.0.mlp.experts.gate_up_proj.0"
    names = [f"model.layers.0.block_sparse_moe.experts.0.{layer}.weight" for layer in ("w1", "w3")]
    assert find(key, names, model_type="mixtral") == (Part(names[0]), Part(names[1]))
    assert find(key, names[:1], model_type="mixtral") is None
    wrapped = {"text_config": {"model_type": "mixtral"}, "model_type": "llava"}
    assert find(key, names, **wrapped) == (Part(names[0]), Part(names[1]))


def test_experts_of_unknown_layout_are_refused():
    with pytest.raises(
        UnsupportedAdapterError, match="whose layout on disk is known, got those of a llama4_text model"
    ):
        find("model.layers.0.feed_forward.experts.down_proj.0", [], model_type="llama4_text")
