"""Merging two adapters of a loaded PeftModel, beside the same merge on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from safemerge.engine.merging import merge_adapters
from safemerge.errors import ConfigError, MismatchError, NonFiniteError, UnsupportedAdapterError
from safemerge.peft_model import merge_into
from tests.integration.dense_oracle import write_adapter, write_models
from tests.integration.test_variants import gpt2

pytestmark = pytest.mark.integration

PROMPT = torch.tensor([[1, 5, 9, 30, 7]])


@pytest.fixture(scope="module")
def adapters(tiny_adapter) -> tuple[Path, Path]:
    """A task and a safety adapter of different rank and scale."""
    return tiny_adapter(seed=1, r=4, alpha=8), tiny_adapter(seed=2, r=2, alpha=6)


@pytest.fixture
def model(tiny_pair, adapters: tuple[Path, Path]) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned)
    model = PeftModel.from_pretrained(base, adapters[0], adapter_name="task")
    model.load_adapter(adapters[1], adapter_name="safety")
    return model


def _models(tiny_pair) -> dict[str, Path]:
    return {"aligned_model": tiny_pair.aligned, "unaligned_model": tiny_pair.unaligned}


def _logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model(PROMPT).logits


@pytest.mark.parametrize(
    "choice", [{"quantile": 0.5}, {"threshold": 2.0, "task_weight": 0.6}, {"threshold": 0.0}]
)
def test_the_added_adapter_answers_like_the_one_merged_on_disk(
    model, tiny_pair, adapters, tmp_path, choice
) -> None:
    in_memory = merge_into(model, **_models(tiny_pair), **choice)
    on_disk = merge_adapters(*adapters, *_models(tiny_pair).values(), output=tmp_path / "merged", **choice)
    assert in_memory.layers == on_disk.layers
    assert in_memory.weights == on_disk.weights
    assert in_memory.digests["aligned_model"] == on_disk.digests["aligned_model"]

    base = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned)
    expected = _logits(PeftModel.from_pretrained(base, tmp_path / "merged"))
    before = _logits(model)
    model.set_adapter("merged")
    assert torch.equal(_logits(model), expected)
    assert torch.equal(expected, before) == (choice == {"threshold": 0.0})


@pytest.mark.parametrize(
    "choice",
    [
        {"method": "ties", "density": 0.4, "count": 2, "rank": 3},
        {"method": "lox", "components": 2},
        {"method": "safelora", "modules": ["*.q_proj"]},
        {"method": "dare_linear", "density": 0.5, "seed": 3, "quantile": 0.5, "max_error": 0.5},
    ],
)
def test_every_option_of_a_merge_on_disk_is_there(model, tiny_pair, adapters, tmp_path, choice) -> None:
    in_memory = merge_into(model, **_models(tiny_pair), **choice)
    on_disk = merge_adapters(*adapters, *_models(tiny_pair).values(), output=tmp_path / "merged", **choice)
    assert in_memory.layers == on_disk.layers
    base = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned)
    model.set_adapter("merged")
    assert torch.equal(_logits(model), _logits(PeftModel.from_pretrained(base, tmp_path / "merged")))


def test_a_method_without_a_safety_adapter_needs_none(model, tiny_pair) -> None:
    model.delete_adapter("safety")
    report = merge_into(model, safety_adapter=None, method="safelora", threshold=2.0, **_models(tiny_pair))
    assert all(layer.merged and layer.safety_norm is None for layer in report.layers)
    assert "safety_adapter" not in report.digests
    with pytest.raises(ConfigError, match="method exact: expected a safety adapter, got none"):
        merge_into(model, safety_adapter=None, name="again", **_models(tiny_pair))


def test_what_was_there_stays_as_it_was(model, tiny_pair) -> None:
    model.set_adapter("safety")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    logits = _logits(model)
    merge_into(model, **_models(tiny_pair), quantile=0.5)
    assert model.active_adapters == ["safety"]
    assert torch.equal(_logits(model), logits)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trainable


def test_the_added_adapter_can_be_saved_and_loaded(model, tiny_pair, tmp_path) -> None:
    merge_into(model, **_models(tiny_pair), quantile=0.5, name="repaired")
    model.set_adapter("repaired")
    expected = _logits(model)
    model.save_pretrained(tmp_path, selected_adapters=["repaired"])
    base = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned)
    loaded = PeftModel.from_pretrained(base, tmp_path / "repaired")
    assert torch.equal(_logits(loaded), expected)


def test_the_scale_that_the_model_applies_is_the_one_that_counts(model, tiny_pair) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling["safety"] = 0.0
    merge_into(model, **_models(tiny_pair), threshold=2.0, task_weight=1.0, safety_weight=1.0)
    before = _logits(model)
    model.set_adapter("merged")
    # Equal but for the order of the sums: the merged factors are wider by a block of zeros.
    assert torch.allclose(_logits(model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"task_adapter": "tsak"}, "expected an adapter named 'tsak', got safety, task"),
        ({"safety_adapter": "x"}, "expected an adapter named 'x'"),
        ({"name": "task"}, "name: expected one that the model does not have yet, got 'task'"),
        ({"threshold": 0.3, "quantile": 0.3}, "got threshold and quantile"),
    ],
)
def test_wrong_names_and_options_are_refused(model, tiny_pair, names, expected) -> None:
    with pytest.raises(ConfigError, match=expected):
        merge_into(model, **_models(tiny_pair), **names)
    assert sorted(model.peft_config) == ["safety", "task"]


def test_adapters_of_another_base_model_are_refused(model, tiny_pair) -> None:
    model.peft_config["safety"].base_model_name_or_path = "org/b"
    models = _models(tiny_pair) | {"aligned_model": "org/a"}
    with pytest.raises(MismatchError, match=r"got org/b \(safety adapter\), org/a \(aligned model\)"):
        merge_into(model, **models)


@pytest.mark.parametrize("variant", ["use_dora", "lora_bias"])
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_variants_that_no_lora_update_holds_are_refused_by_name(model, tiny_pair, variant) -> None:
    model.add_adapter("odd", LoraConfig(r=2, target_modules=["q_proj"], **{variant: True}))
    with pytest.raises(UnsupportedAdapterError, match=f"adapter 'odd'.*{variant}=true"):
        merge_into(model, safety_adapter="odd", **_models(tiny_pair))


def test_lora_of_embeddings_is_refused(model, tiny_pair) -> None:
    model.add_adapter("odd", LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(UnsupportedAdapterError, match=r"linear layers, got another in model\.embed_tokens"):
        merge_into(model, safety_adapter="odd", **_models(tiny_pair))


def test_nan_in_an_adapter_is_named(model, tiny_pair) -> None:
    path = "model.layers.1.self_attn.v_proj"
    model.get_base_model().get_submodule(path).lora_B["task"].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"adapter 'task'.*{path}"):
        merge_into(model, **_models(tiny_pair))


def test_checkpoints_of_another_model_leave_the_model_as_it_was(tiny_pair, tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    other = get_peft_model(
        LlamaForCausalLM(LlamaConfig(hidden_size=16, **shape)), LoraConfig(r=2), adapter_name="task"
    )
    other.add_adapter("safety", LoraConfig(r=2))
    with pytest.raises(MismatchError, match="q_proj"):
        merge_into(other, **_models(tiny_pair))
    assert "merged" not in other.peft_config


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"target_parameters": ["mlp.up_proj.weight"]}]
)
def test_what_only_folders_can_merge_is_refused_by_name(model, tiny_pair, settings) -> None:
    model.add_adapter("odd", LoraConfig(r=2, target_modules=["q_proj"], **settings))
    with pytest.raises(
        UnsupportedAdapterError, match=f"got {next(iter(settings))}: merge the adapters' fold"
    ):
        merge_into(model, safety_adapter="odd", **_models(tiny_pair))


def test_conv1d_layers_are_merged_as_on_disk(tmp_path) -> None:
    models = write_models(tmp_path, gpt2())
    settings = {"lora_alpha": 6, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    task, safety = (
        write_adapter(tmp_path / f"{r}", AutoModelForCausalLM.from_pretrained(models[0]), r, r=r, **settings)
        for r in (2, 3)
    )
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models[0]), task, "task")
    model.load_adapter(safety, "safety")
    paths = {"aligned_model": models[0], "unaligned_model": models[1]}
    in_memory = merge_into(model, **paths, quantile=0.5)
    on_disk = merge_adapters(task, safety, **paths, output=tmp_path / "merged", quantile=0.5)
    assert in_memory.layers == on_disk.layers
    model.set_adapter("merged")
    base = AutoModelForCausalLM.from_pretrained(models[0])
    assert torch.equal(_logits(model), _logits(PeftModel.from_pretrained(base, tmp_path / "merged")))
