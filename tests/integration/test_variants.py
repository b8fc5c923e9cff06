"""Every LoRA that PEFT writes: merged as the formula says, and loaded by PEFT with the same answers.

Expectations come from :mod:`tests.integration.dense_oracle`. Logits are compared in float64; the merged
factors are stored in fp32, which rounds an update to about 1e-7 of itself, and two layers pass that on to
logits of a size of about 1: 1e-5 is a hundred times that, and far below the effect of any layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from safemerge.engine.merging import merge_adapters
from safemerge.errors import AdapterError, MismatchError, UnsupportedAdapterError
from safemerge.records import MergeReport
from safemerge.storage.adapters import adapter_digest, read_adapter
from safemerge.storage.architectures import is_transposed
from tests.integration.dense_oracle import WEIGHTS, dense_merge, logits_of, write_adapter, write_models

pytestmark = [
    pytest.mark.integration,
    # PEFT says that it saves the embeddings beside their LoRA, and that Conv1D layers are Conv1D layers.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning"),
]

TOLERANCE = 1e-5

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LOAD = partial(transformers.AutoModelForCausalLM.from_pretrained, local_files_only=True)


def llama(**settings: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES | settings))


def gpt2(**settings: Any) -> Any:
    sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | tokens | settings))


def phi3(**settings: Any) -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SIZES | settings))


def qwen2(**settings: Any) -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES | settings))


def merged(
    folder: Path,
    model: Any,
    task: dict[str, Any],
    safety: dict[str, Any],
    transposed: tuple[str, ...] = (),
    load: Callable[[Path], Any] = LOAD,
) -> MergeReport:
    """Write models and adapters, merge them, and check all against the dense merge."""
    models = write_models(folder, model)
    adapters = (
        write_adapter(folder / "task", load(models[0]), 1, **task),
        write_adapter(folder / "safety", load(models[0]), 2, **safety),
    )
    expected = dense_merge(models, adapters, load, transposed)
    report = merge_adapters(
        *adapters,
        *models,
        output=folder / "merged",
        threshold=expected.threshold,
        task_weight=WEIGHTS[0],
        safety_weight=WEIGHTS[1],
    )
    cosines = {layer.module: layer.cosine for layer in report.layers}
    # fp32 weights are subtracted in fp32: their difference is off by 1e-7 of the weights, 1e-6 of itself.
    assert cosines == pytest.approx(expected.cosines, abs=1e-5)
    assert 0 < sum(layer.merged for layer in report.layers) < len(report.layers)
    got = logits_of(load, models[0], folder / "merged")
    assert torch.allclose(got, expected.logits, rtol=0, atol=TOLERANCE)
    plain = logits_of(load, models[0], adapters[0])
    assert not torch.allclose(plain, expected.logits, rtol=0, atol=100 * TOLERANCE)
    return report


def test_ranks_and_targets_may_differ(tmp_path: Path):
    report = merged(
        tmp_path,
        llama(),
        {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    )
    alone = [layer for layer in report.layers if layer.module.endswith("up_proj")]
    assert [layer.reason for layer in alone] == 2 * ["kept: the safety adapter lacks the layer"]
    assert report.safety_only_layers == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


@pytest.mark.parametrize(
    ("task", "safety"),
    [
        pytest.param(
            {"target_modules": r".*\.(1\.self_attn\.[qk]|0\.mlp\.up)_proj"},
            {"target_modules": "all-linear"},
            id="regex",
        ),
        pytest.param(
            {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.0.mlp.up_proj"]},
            {"target_modules": r".*_proj"},
            id="all-linear",
        ),
        pytest.param(
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
            {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
            id="layers",
        ),
        pytest.param(
            {
                "target_modules": ["q_proj", "v_proj"],
                "use_rslora": True,
                "rank_pattern": {"1.self_attn.q_proj": 3},
                "alpha_pattern": {r"layers\.0\.self_attn\.[qv]_proj": 5},
            },
            {"target_modules": ["q_proj", "v_proj"], "r": 3, "alpha_pattern": {"q_proj": 2}},
            id="patterns",
        ),
    ],
)
def test_settings_of_targets_and_ranks(tmp_path: Path, task: dict[str, Any], safety: dict[str, Any]):
    report = merged(tmp_path, llama(), {"r": 2, "lora_alpha": 6} | task, {"r": 2, "lora_alpha": 3} | safety)
    written = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    named = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in written}
    assert named == {layer.module for layer in report.layers}


@pytest.mark.parametrize("flag", [True, False])
def test_conv1d_layers_beside_linear_ones(tmp_path: Path, flag: bool):
    """GPT-2 stores c_attn, c_fc and c_proj as (d_in, d_out), its head as (d_out, d_in), whatever the flag."""
    settings = {"target_modules": ["c_attn", "c_proj", "c_fc", "lm_head"], "fan_in_fan_out": flag}
    merged(
        tmp_path,
        gpt2(),
        {"r": 2, "lora_alpha": 6} | settings,
        {"r": 3, "lora_alpha": 6} | settings,
        ("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    )


def test_fused_projections(tmp_path: Path):
    settings = {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"], "lora_alpha": 6}
    merged(tmp_path, phi3(), {"r": 4} | settings, {"r": 2} | settings)


def test_biases_beside_weights(tmp_path: Path):
    settings = {"target_modules": "all-linear", "lora_alpha": 6}
    merged(tmp_path, qwen2(), {"r": 4} | settings, {"r": 2} | settings)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["lm_head", "q_proj", "v_proj"], ["embed_tokens", "q_proj", "v_proj"]])
def test_embeddings_and_heads_tied_or_not(tmp_path: Path, tied: bool, targets: list[str]):
    settings = {"target_modules": targets, "lora_alpha": 6}
    report = merged(
        tmp_path,
        llama(tie_word_embeddings=tied),
        {"r": 4} | settings,
        {"r": 2} | settings,
        ("embed_tokens.weight",),
    )
    assert any("bit for bit" in warning for warning in report.warnings)


SAVED = {
    "lora_alpha": 6,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": ["lm_head", "model.norm"],
}


def test_modules_trained_in_full_are_kept_from_the_task_adapter(tmp_path: Path):
    models = write_models(tmp_path, llama())
    task = write_adapter(tmp_path / "task", LOAD(models[0]), 1, r=2, **SAVED)
    safety = write_adapter(
        tmp_path / "safety", LOAD(models[0]), 2, r=2, **SAVED | {"modules_to_save": ["lm_head", "up_proj"]}
    )
    expected = dense_merge(models, (task, safety), LOAD)
    report = merge_adapters(
        task,
        safety,
        *models,
        output=tmp_path / "merged",
        threshold=expected.threshold,
        task_weight=WEIGHTS[0],
        safety_weight=WEIGHTS[1],
    )
    assert report.warnings == (
        "kept from the task adapter bit for bit, neither scored nor merged: lm_head, model.norm",
        "left out, though the safety adapter replaces it in full: lm_head, "
        "model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj",
    )
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (task, tmp_path / "merged")
    )
    for name in ("base_model.model.lm_head.weight", "base_model.model.model.norm.weight"):
        assert torch.equal(before[name], after[name])

    # The dense merge knows nothing of them: the same model with their weights is what PEFT must give.
    model = LOAD(models[0])
    model.load_state_dict(
        {"lm_head.weight": before["base_model.model.lm_head.weight"],
         "model.norm.weight": before["base_model.model.model.norm.weight"]},
        strict=False,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "changed")
    changed = dense_merge((models[0], models[1]), (task, safety), LOAD, start=tmp_path / "changed")
    got = logits_of(LOAD, models[0], tmp_path / "merged")
    assert torch.allclose(got, changed.logits, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(got, expected.logits, rtol=0, atol=100 * TOLERANCE)


def test_what_both_adapters_saved_alike_is_no_matter(tmp_path: Path):
    models = write_models(tmp_path, llama())
    task = write_adapter(tmp_path / "task", LOAD(models[0]), 1, r=2, **SAVED)
    report = merge_adapters(task, task, *models, output=tmp_path / "merged")
    kept, same = report.warnings
    assert kept.startswith("kept from the task adapter bit for bit")
    assert "one and the same" in same


def test_dora_is_read_for_those_who_ask(tmp_path: Path):
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["c_attn", "wte"], "use_dora": True}
    aligned, unaligned = write_models(tmp_path, gpt2())
    folder = write_adapter(tmp_path / "dora", LOAD(aligned), 1, **settings, fan_in_fan_out=True)
    with pytest.raises(UnsupportedAdapterError, match=r"use_dora=true \(DoRA rescales the weight\)"):
        merge_adapters(folder, folder, aligned, unaligned, output=tmp_path / "merged")

    adapter = read_adapter(folder, dora=True)
    assert len(adapter_digest(folder, dora=True)) == 64
    model = PeftModel.from_pretrained(LOAD(aligned), folder).get_base_model()
    assert adapter.magnitudes.keys() == adapter.pairs.keys()
    assert len(adapter.pairs) == 3
    for module, magnitude in adapter.magnitudes.items():
        layer = model.get_submodule(module)
        assert torch.equal(magnitude, layer.lora_magnitude_vector["default"].weight.flatten())
        assert torch.equal(adapter.pairs[module].delta().T, layer.get_delta_weight("default"))
        assert magnitude.shape == (adapter.pairs[module].shape[0],)

    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"magnitudes of every module, .* of .*\.h\.0\.attn\.c_attn$"):
        read_adapter(folder, dora=True)


def test_vocabularies_that_differ_are_named_where_an_embedding_is_adapted(tmp_path: Path):
    models = write_models(tmp_path / "one", llama())
    others = write_models(tmp_path / "two", llama(vocab_size=44))
    settings = {"r": 2, "lora_alpha": 6}
    for target, shape, other in (("embed_tokens", (16, 40), (16, 44)), ("lm_head", (40, 16), (44, 16))):
        folder = write_adapter(tmp_path / target, LOAD(models[0]), 1, target_modules=[target], **settings)
        shapes = f"(expected {shape} as of the adapter's update, got aligned {shape}, unaligned {other})"
        with pytest.raises(MismatchError, match=re.escape(shapes)):
            merge_adapters(folder, folder, models[0], others[1], output=tmp_path / "merged")
    folder = write_adapter(tmp_path / "q", LOAD(models[0]), 1, target_modules=["q_proj"], **settings)
    merge_adapters(folder, folder, models[0], others[1], output=tmp_path / "merged")


LOAD_WRAPPER = partial(transformers.AutoModelForImageTextToText.from_pretrained, local_files_only=True)


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = transformers.LlamaConfig(**SIZES)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    return transformers.LlavaForConditionalGeneration(config)


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, ...]]:
    """Aligned model, unaligned model, task and safety adapter: of Llava, and of the Llama inside it."""
    folder = tmp_path_factory.mktemp("wrapped")
    models = {"wrapper": write_models(folder / "wrapper", llava()), "text": (folder / "0", folder / "1")}
    for source, target in zip(models["wrapper"], models["text"], strict=True):
        inner, text = LOAD_WRAPPER(source), llama()
        text.model.load_state_dict(inner.model.language_model.state_dict())
        text.lm_head.load_state_dict(inner.lm_head.state_dict())
        text.save_pretrained(target)
    settings = {
        "lora_alpha": 6,
        "target_modules": r"(?!.*vision_tower).*\.(q_proj|up_proj)",
    }
    made: dict[str, tuple[Path, ...]] = {}
    for kind, load in (("wrapper", LOAD_WRAPPER), ("text", LOAD)):
        adapters = (
            write_adapter(folder / f"{kind}_{seed}", load(models[kind][0]), seed, r=2 + seed, **settings)
            for seed in (0, 1)
        )
        made[kind] = (*models[kind], *adapters)
    return made


@pytest.mark.parametrize("adapted", ["text", "wrapper"])
@pytest.mark.parametrize("stored", ["text", "wrapper"])
def test_a_multimodal_wrapper_on_either_side(
    wrapped: dict[str, tuple[Path, ...]], tmp_path: Path, adapted, stored
):
    load = LOAD if adapted == "text" else LOAD_WRAPPER
    own, adapters = wrapped[adapted][:2], wrapped[adapted][2:]
    expected = dense_merge(own, adapters, load)
    weights = {"task_weight": WEIGHTS[0], "safety_weight": WEIGHTS[1]}
    report = merge_adapters(
        *adapters, *wrapped[stored][:2], output=tmp_path / "m", threshold=expected.threshold, **weights
    )
    assert {layer.module: layer.cosine for layer in report.layers} == pytest.approx(
        expected.cosines, abs=1e-5
    )
    got = logits_of(load, own[0], tmp_path / "m")
    assert torch.allclose(got, expected.logits, rtol=0, atol=TOLERANCE)


def test_adapters_of_a_wrapper_and_of_its_language_model_do_not_go_together(wrapped, tmp_path: Path):
    task, safety = wrapped["text"][2], wrapped["wrapper"][3]
    with pytest.raises(
        MismatchError,
        match=r"got model\.layers\.0\.\S+ in the task adapter, model\.language_model\.layers\.0\.\S+ in the",
    ):
        merge_adapters(task, safety, *wrapped["text"][:2], output=tmp_path / "merged")


@pytest.mark.parametrize(
    "dtypes", [("bfloat16", "bfloat16"), ("float16", "float32"), ("bfloat16", "float16")]
)
def test_checkpoints_of_any_float_type_sharded_or_not(tmp_path: Path, dtypes: tuple[str, str]):
    """Rounded weights are what counts: the oracle loads the same ones."""
    models = write_models(tmp_path, llama())
    settings = {"lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    adapters = tuple(write_adapter(tmp_path / f"{r}", LOAD(models[0]), r, r=r, **settings) for r in (2, 3))
    folders = (tmp_path / "a", tmp_path / "u")
    for source, target, dtype, size in zip(models, folders, dtypes, ("4KB", "10GB"), strict=True):
        LOAD(source, dtype=getattr(torch, dtype)).save_pretrained(target, max_shard_size=size)
    assert len(list(folders[0].glob("model-*.safetensors"))) > 2
    expected = dense_merge(folders, adapters, partial(LOAD, dtype=torch.float32))
    report = merge_adapters(*adapters, *folders, output=tmp_path / "merged", threshold=expected.threshold)
    assert {layer.module: layer.cosine for layer in report.layers} == pytest.approx(
        expected.cosines, abs=1e-5
    )
    assert [layer.merged for layer in report.layers] == [
        expected.cosines[layer.module] < expected.threshold for layer in report.layers
    ]
    bare = tmp_path / "bare"
    LOAD(models[1]).model.save_pretrained(bare)  # without the head: no tensor has a leading "model."
    assert all(not name.startswith("model.") for name in load_file(bare / "model.safetensors"))
    again = merge_adapters(*adapters, models[0], bare, output=tmp_path / "again", threshold=0.0)
    plain = merge_adapters(*adapters, *models, output=tmp_path / "plain", threshold=0.0)
    assert again.layers == plain.layers


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "gpt_neo"])
def test_conv1d_layers_are_those_that_the_table_says(kind: str):
    sizes = {"n_embd": 16, "hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 32}
    layers = (
        {"attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 2} if kind == "gpt_neo" else {}
    )
    config = transformers.AutoConfig.for_model(kind, **sizes, **layers)
    model = transformers.AutoModel.from_config(config)
    conv1d, linear = (
        {name for name, module in model.named_modules() if isinstance(module, layer)}
        for layer in (transformers.pytorch_utils.Conv1D, torch.nn.Linear)
    )
    assert bool(conv1d) == (kind != "gpt_neo")
    assert all(is_transposed(kind, name) for name in conv1d)
    assert not any(is_transposed(kind, name) for name in linear)
