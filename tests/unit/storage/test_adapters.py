"""Adapters: read as PEFT reads them, refused by name where no LoRA update can hold them, written for PEFT."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.core.lora import LoraPair
from safemerge.errors import AdapterError, MismatchError, NonFiniteError, UnsupportedAdapterError
from safemerge.storage.adapters import (
    adapter_digest,
    check_same_names,
    copy_adapter,
    read_adapter,
    write_adapter,
)

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


@pytest.fixture
def folder(merge_files) -> Path:
    return merge_files.task


def test_pairs_are_keyed_by_module_path(folder: Path):
    adapter = read_adapter(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(adapter.pairs) == 4
    assert torch.equal(adapter.pairs[Q].lora_a, tensors[A])
    assert torch.equal(adapter.pairs[Q].lora_b, tensors[B])
    assert adapter.pairs[Q].scale == 5 / 3
    assert adapter.config["target_modules"] == ["q_proj", "v_proj"]


def test_tensors_outlive_their_file(folder: Path):
    adapter = read_adapter(folder)
    before = adapter.pairs[Q].lora_a.clone()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    assert torch.equal(adapter.pairs[Q].lora_a, before)


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_and_rslora_scale_as_in_peft(tmp_path: Path, rslora: bool):
    from peft import LoraConfig, get_peft_model

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.v_proj = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(Attention() for _ in range(12))
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        use_rslora=rslora,
        # 1.q_proj must not match layer 11; the regular expression must match whole components.
        # PEFT sorts the patterns when it saves them, so these are sorted: the first match counts.
        rank_pattern={r"layers\.1\.q_proj": 2, r"layers\.[0-3]\.v_proj": 5, "v_proj": 6},
        alpha_pattern={"2.q_proj": 3, r"layers\.\d\.v_proj": 7.5},
    )
    peft_model = get_peft_model(model, config)
    peft_model.save_pretrained(tmp_path)
    pairs = read_adapter(tmp_path).pairs
    assert len(pairs) == 24
    for module, pair in pairs.items():
        layer = peft_model.base_model.model.get_submodule(module)
        assert pair.scale == layer.scaling["default"], module
        assert pair.rank == layer.r["default"], module


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": ...}, "peft_type None"),
        ({"use_dora": True}, "use_dora=true"),
        ({"lora_bias": True}, "lora_bias=true"),
        ({"bias": "all"}, 'bias="all"'),
        ({"bias": "lora_only"}, 'bias="lora_only"'),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens="),
        ({"kasa_config": {}, "use_qalora": True}, r"holds: use_qalora=true \(QA-LoRA pools the input\)$"),
        ({"kasa_config": {"beta": 1}}, "kasa_config="),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora="),
        ({"arrow_config": {"top_k": 3}}, "arrow_config="),
        ({"monteclora_config": {"n": 1}}, "monteclora_config="),
        ({"target_parameters": ["experts.bias", "mlp.w1"]}, "got experts.bias, mlp.w1$"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying=true .one update is shared by two modules"),
        ({"use_next_years_idea": True}, r"use_next_years_idea=true \(unknown here\)"),
        (
            {"use_dora": True, "lora_bias": True},
            r"lora_bias=true \(.*\), use_dora=true \(DoRA rescales the weight\)",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4 .*changes the base"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights=olora"),
        ({"init_lora_weights": "corda"}, "init_lora_weights=corda"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights=lora_ga"),
    ],
)
def test_what_no_lora_update_holds_is_refused_by_name(
    folder: Path, edit_json, settings: dict[str, Any], named: str
):
    edit_json(folder / "adapter_config.json", **settings)
    with pytest.raises(UnsupportedAdapterError, match=named):
        read_adapter(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"use_dora": False, "kasa_config": None, "modules_to_save": None, "layer_replication": []},
        {"target_modules": "all-linear"},
        {"megatron_core": "megatron.core", "qalora_group_size": 16},
    ],
)
def test_plain_lora_passes_however_it_was_started(folder: Path, edit_json, settings: dict[str, Any]):
    edit_json(folder / "adapter_config.json", **settings)
    assert len(read_adapter(folder).pairs) == 4


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.lora_magnitude_vector",
        f"base_model.model.{Q}.lora_B.bias",
        f"base_model.model.{Q}.base_layer.bias",
        f"base_model.model.{Q}.lora_embedding_A",
        f"base_model.model.{Q}.lora_A",
        "base_model.model.model.embed_tokens.lora_embedding_A.weight",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.norm.weight",
        "lm_head.weight",
    ],
)
def test_unknown_tensors_are_refused_by_name(folder: Path, edit_tensors, name: str):
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t.update({name: torch.ones(2, 2)}))
    with pytest.raises(UnsupportedAdapterError, match=f"expected tensors named .*, got {name}$"):
        read_adapter(folder)


@pytest.mark.parametrize("tensor", [torch.ones(3, 8, 1, 1), torch.ones(3, 8, dtype=torch.int8)])
def test_what_is_no_float_matrix_is_refused_by_name(folder: Path, edit_tensors, tensor: torch.Tensor):
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t.update({A: tensor}))
    with pytest.raises(UnsupportedAdapterError, match=f"expected float matrices, got something else in {A}"):
        read_adapter(folder)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_named(folder: Path, edit_tensors, bad: float):
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[A][0, 0] = tensors[B][0, 0] = bad

    edit_tensors(folder / "adapter_model.safetensors", spoil)
    with pytest.raises(NonFiniteError, match=f"got NaN or infinity in {A}, {B}$"):
        read_adapter(folder)


def test_a_pickled_adapter_is_refused(folder: Path):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"got only adapter_model.bin: pickled adapters are refused"):
        read_adapter(folder)


def test_missing_files_are_named(folder: Path):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"task: expected adapter_model.safetensors, got none"):
        read_adapter(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(
        AdapterError, match=r"task: expected a PEFT adapter with adapter_config.json, got none"
    ):
        read_adapter(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"adapter_config.json, got a model \(config\.json\)$"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "expected JSON"), ("3", "expected a JSON object, got int")]
)
def test_an_unusable_config_is_named(folder: Path, content: str, message: str):
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=f"adapter_config.json: {message}"):
        read_adapter(folder)


@pytest.mark.parametrize("kept_bytes", [0, 30, -1])
def test_a_truncated_file_is_named(folder: Path, kept_bytes: int):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors: expected a whole safetensors file"):
        read_adapter(folder)


def test_an_adapter_without_tensors_is_refused(folder: Path):
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="expected LoRA tensors, got an empty file"):
        read_adapter(folder)


def test_half_a_pair_is_named(folder: Path, edit_tensors):
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t.pop(B))
    with pytest.raises(
        AdapterError, match=f"expected lora_A and lora_B of every module, got only one in {Q}$"
    ):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4}, rf"{Q}: expected rank 4 as configured, got lora_A \(3, 8\)"),
        ({"r": 0}, rf"{Q}: expected rank 0 as configured, got lora_A \(3, 8\)"),
        ({"r": ...}, f"r of {Q}: expected a number, got None"),
        ({"r": True}, f"r of {Q}: expected a number, got True"),
        ({"lora_alpha": "16"}, f"lora_alpha of {Q}: expected a number, got '16'"),
        ({"lora_alpha": math.nan}, f"{Q}: LoRA scale: expected a finite number, got nan"),
        ({"alpha_pattern": {"(": 3}}, r"alpha_pattern: expected a regular expression, got '\('"),
        ({"rank_pattern": {"v_proj": 2}}, r"v_proj: expected rank 2 as configured, got lora_A \(3, 8\)"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_named(
    folder: Path, edit_json, settings: dict[str, Any], message: str
):
    edit_json(folder / "adapter_config.json", **settings)
    with pytest.raises(AdapterError, match=message):
        read_adapter(folder)


def test_factors_that_have_no_product_are_named(folder: Path, edit_tensors):
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t.update({B: torch.ones(8, 2)}))
    with pytest.raises(AdapterError, match=rf"{Q}: LoRA factors: expected .* got lora_a \(3, 8\)"):
        read_adapter(folder)


def merged_pairs(rank: int = 5) -> dict[str, LoraPair]:
    generator = torch.Generator().manual_seed(0)
    return {
        module: LoraPair(
            torch.randn(rank, 8, generator=generator), torch.randn(d_out, rank, generator=generator)
        )
        for module, d_out in ((V, 4), (Q, 8))
    }


def test_what_is_written_reads_back(tmp_path: Path):
    template = {
        "peft_type": "LORA", "r": 3, "lora_alpha": 9, "use_rslora": True, "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 2}, "target_modules": r".*\.(q|v)_proj", "init_lora_weights": "eva",
        "eva_config": {"rho": 2.0}, "inference_mode": False, "base_model_name_or_path": "org/aligned",
    }  # fmt: skip
    before = json.dumps(template)
    pairs = merged_pairs()
    write_adapter(tmp_path, pairs, template)
    adapter = read_adapter(tmp_path)
    assert adapter.pairs.keys() == pairs.keys()
    for module, pair in pairs.items():
        assert adapter.pairs[module].scale == 1
        assert torch.equal(adapter.pairs[module].lora_a, pair.lora_a)
        assert torch.equal(adapter.pairs[module].lora_b, pair.lora_b)
    assert adapter.config["r"] == adapter.config["lora_alpha"] == 5
    assert adapter.config["target_modules"] == template["target_modules"]
    assert adapter.config["base_model_name_or_path"] == "org/aligned"
    assert adapter.config["inference_mode"] is True
    assert adapter.config["eva_config"] is None
    assert json.dumps(template) == before


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path):
    pairs = merged_pairs()
    written = []
    for name, order in (("one", list(pairs)), ("two", list(reversed(pairs)))):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, {module: pairs[module] for module in order}, {"peft_type": "LORA"})
        written.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])
    assert written[0] == written[1]


def test_pairs_of_different_rank_or_scale_are_not_written(tmp_path: Path):
    pairs = merged_pairs()
    with pytest.raises(AdapterError, match=r"expected pairs of one rank with scale 1, got ranks \[5, 6\]"):
        write_adapter(tmp_path, pairs | {Q: merged_pairs(6)[Q]}, {})
    with pytest.raises(AdapterError, match="scale 1"):
        write_adapter(tmp_path, {Q: LoraPair(pairs[Q].lora_a, pairs[Q].lora_b, 2.0)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_bit_for_bit(folder: Path, tmp_path: Path):
    (tmp_path / "copy").mkdir()
    copy_adapter(folder, tmp_path / "copy")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_the_digest_covers_what_shapes_the_update(folder: Path, edit_json, edit_tensors):
    before = adapter_digest(folder)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="elsewhere", peft_version="9")
    assert adapter_digest(folder) == before
    edit_json(folder / "adapter_config.json", lora_alpha=6)
    changed = adapter_digest(folder)
    assert changed != before
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t[A].add_(1))
    assert adapter_digest(folder) != changed


E = "model.layers.0.mlp.experts"


def expert_pairs(experts: int = 3, rank: int = 2) -> dict[str, LoraPair]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{E}.{parameter}.{index}": LoraPair(
            torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        )
        for parameter, d_out, d_in in (("gate_up_proj", 12, 8), ("down_proj", 8, 6))
        for index in range(experts)
    }


def test_experts_are_packed_as_peft_packs_them(tmp_path: Path):
    pairs = expert_pairs(experts=11)  # a tenth one, to be sorted as a number
    template = {"peft_type": "LORA", "target_parameters": ["experts.down_proj", "experts.gate_up_proj"]}
    write_adapter(tmp_path, pairs, template)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    prefix = f"base_model.model.{E}"
    inner_b, outer_a = tensors[f"{prefix}.base_layer.lora_B.weight"], tensors[f"{prefix}.lora_A.weight"]
    # A is (experts, r, d_in) flattened, B (d_out, r, experts); the first parameter is the innermost.
    assert torch.equal(outer_a.reshape(11, 2, 6)[10], pairs[f"{E}.down_proj.10"].lora_a)
    assert torch.equal(inner_b.reshape(12, 2, 11)[:, :, 10], pairs[f"{E}.gate_up_proj.10"].lora_b)

    read = read_adapter(tmp_path).pairs
    assert read.keys() == pairs.keys()
    for key, pair in pairs.items():
        assert torch.equal(read[key].lora_a, pair.lora_a)
        assert torch.equal(read[key].lora_b, pair.lora_b)


def test_the_digest_covers_which_parameters_are_meant(tmp_path: Path, edit_json):
    pairs = {key: pair for key, pair in expert_pairs().items() if "down_proj" in key}
    write_adapter(tmp_path, pairs, {"peft_type": "LORA", "target_parameters": ["down_proj"]})
    before = adapter_digest(tmp_path)
    edit_json(tmp_path / "adapter_config.json", target_parameters=["gate_up_proj"])
    assert adapter_digest(tmp_path) != before


def test_embeddings_and_what_is_saved_keep_their_names(tmp_path: Path):
    embedding, head = "model.embed_tokens", "lm_head"
    pairs = {
        embedding: LoraPair(torch.randn(2, 40), torch.randn(8, 2)),
        head: LoraPair(torch.randn(2, 8), torch.randn(40, 2)),
    }
    saved = {
        "model.embed_tokens.weight": torch.randn(40, 8),
        "lm_head.weight": torch.randn(40, 8).to(torch.bfloat16),
        "model.norm.weight": torch.randn(8),
        "score.bias": torch.randn(3),
    }
    template = {
        "peft_type": "LORA",
        "modules_to_save": ["norm", "score"],
        "target_modules": [embedding, head],
    }
    write_adapter(tmp_path, pairs, template, saved)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == {
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
        "base_model.model.model.embed_tokens.base_layer.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.lm_head.lora_B.weight",
        "base_model.model.lm_head.base_layer.weight",
        "base_model.model.model.norm.weight",
        "base_model.model.score.bias",
    }
    adapter = read_adapter(tmp_path)
    assert adapter.pairs[embedding].shape == (8, 40)
    assert adapter.saved.keys() == saved.keys()
    for name, tensor in saved.items():
        assert adapter.saved[name].dtype == tensor.dtype
        assert torch.equal(adapter.saved[name], tensor)
    assert read_adapter(tmp_path).magnitudes == {}


def test_nan_in_what_is_saved_is_named(folder: Path, edit_tensors):
    name = "base_model.model.lm_head.weight"
    edit_tensors(folder / "adapter_model.safetensors", lambda t: t.update({name: torch.tensor([[math.nan]])}))
    with pytest.raises(NonFiniteError, match=f"got NaN or infinity in {name}$"):
        read_adapter(folder)


def test_a_module_that_the_settings_leave_out_is_named(folder: Path, edit_json):
    edit_json(folder / "adapter_config.json", target_modules=["q_proj"])
    with pytest.raises(AdapterError, match=rf"leave out model\.layers\.0\.self_attn\.v_proj, {V}$"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("task", "safety", "got"),
    [
        (
            "model.layers.0.q",
            "layers.0.q",
            r"model\.layers\.0\.q in the task adapter, layers\.0\.q in the safety",
        ),
        (f"{E}.0.w1", f"{E}.gate_up_proj.0", rf"{E}\.0\.w1 in the task adapter, {E}\.gate_up_proj\.0 in"),
        (f"{E}.gate_up_proj.0", f"{E}.0.w1", rf"{E}\.gate_up_proj\.0 in the task adapter, {E}\.0\.w1 in"),
    ],
)
def test_adapters_that_name_layers_differently_are_refused(task: str, safety: str, got: str):
    pair = LoraPair(torch.ones(1, 2), torch.ones(2, 1))
    with pytest.raises(MismatchError, match=f"got {got}"):
        check_same_names({task: pair}, {safety: pair})
    check_same_names({task: pair}, {task: pair, "other": pair})
    check_same_names({task: pair}, {})
