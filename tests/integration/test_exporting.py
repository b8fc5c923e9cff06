"""Exported models beside PEFT's own merge: tiny Llama and GPT-2 models, loaded by transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from safemerge.engine.exporting import export_adapter
from safemerge.storage import shards
from safemerge.storage.checkpoints import Checkpoint

pytestmark = pytest.mark.integration

TOKENS = torch.arange(12)[None]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"vocab_size": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "eos_token_id": 2}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK_ELEMENTS", 500)  # so that every matrix takes several


class Files(NamedTuple):
    model: Path
    adapter: Path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Files]:
    """A function that saves a tiny model, in shards or not, and an adapter of it whose update is not zero."""

    def build(kind: str, dtype: torch.dtype, shard: str = "5GB", tied: bool = False, **lora: Any) -> Files:
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model: Any
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied)).to(dtype)
        else:
            model = GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=1)).to(dtype)
        model.save_pretrained(tmp_path / "model", max_shard_size=shard)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of fan_in_fan_out, and of tied embeddings
            adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **lora))
            with torch.no_grad():
                for name, weight in adapted.named_parameters():
                    if "lora_magnitude" in name:
                        weight.mul_(1 + 0.1 * torch.randn_like(weight))
                    elif "lora_" in name or "modules_to_save" in name:
                        weight.copy_(0.1 * torch.randn_like(weight))
            adapted.save_pretrained(tmp_path / "adapter")
        return Files(tmp_path / "model", tmp_path / "adapter")

    return build


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS).logits
    return logits


def _adapted(files: Files) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(_load(files.model), files.adapter)


CASES = {
    "llama fp32": ("llama", torch.float32, "5GB", {"target_modules": ALL_LINEAR}),
    "llama bf16 in shards": ("llama", torch.bfloat16, "20KB", {"target_modules": ALL_LINEAR}),
    "llama rslora": ("llama", torch.float32, "20KB", {"target_modules": ALL_LINEAR, "use_rslora": True}),
    "llama dora bf16": ("llama", torch.bfloat16, "20KB", {"target_modules": ALL_LINEAR, "use_dora": True}),
    "llama both embeddings": ("llama", torch.float32, "5GB", {"target_modules": ["embed_tokens", "lm_head"]}),
    "llama dora embedding": (
        "llama",
        torch.float32,
        "5GB",
        {"target_modules": ["embed_tokens"], "use_dora": True},
    ),
    "gpt2": ("gpt2", torch.float32, "20KB", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 dora": ("gpt2", torch.float32, "5GB", {"target_modules": ["c_attn", "c_fc"], "use_dora": True}),
    "llama saved head": (
        "llama",
        torch.float32,
        "5GB",
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_weights_are_those_of_peft(make: Callable[..., Files], tmp_path: Path, case: tuple[Any, ...]) -> None:
    kind, dtype, shard, lora = case
    files = make(kind, dtype, shard, **lora)
    report = export_adapter(files.model, files.adapter, output=tmp_path / "ours")
    ours, peft = _load(tmp_path / "ours"), _adapted(files).merge_and_unload()
    assert ours.dtype == dtype
    # Both sum in fp32 and round once to the stored dtype. Sums of a few products of numbers below 1 may
    # come out some 2⁻²⁴ apart, which flips a rounding to bf16 at most by one step of 2⁻⁷ of the number.
    tolerance = {"rtol": 2**-7 if dtype == torch.bfloat16 else 1e-6, "atol": 1e-6}
    expected = peft.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight.float(), expected[name].float(), **tolerance, msg=name)
    source = Checkpoint.open(files.model)
    written = Checkpoint.open(tmp_path / "ours")
    assert {name: (entry.file.name, entry.dtype) for name, entry in written.tensors.items()} == {
        name: (entry.file.name, entry.dtype) for name, entry in source.tensors.items()
    }
    for name in source.tensors.keys() - set(report.changed):
        assert torch.equal(written.read_tensor(name), source.read_tensor(name)), name
    assert all(
        not torch.equal(written.read_tensor(name), source.read_tensor(name)) for name in report.changed
    )


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"]])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_tied_embeddings_answer_as_the_adapter_does(
    make: Callable[..., Files], tmp_path: Path, targets: list[str], shard: str
) -> None:
    # PEFT's merge adds a tied layer's update to both embeddings, and answers otherwise than its adapter:
    # what counts is the adapter in use.
    files = make("llama", torch.float32, shard, tied=True, target_modules=targets)
    report = export_adapter(files.model, files.adapter, output=tmp_path / "ours")
    ours, adapted = _load(tmp_path / "ours"), _adapted(files)
    assert report.untied
    assert not ours.config.tie_word_embeddings
    # Logits near 1 through two layers in fp32, summed in another order.
    torch.testing.assert_close(_logits(ours), _logits(adapted), rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not torch.allclose(_logits(adapted.merge_and_unload()), _logits(ours), atol=0.1)


def test_a_tied_head_of_gpt2_is_untied_as_well(make: Callable[..., Files], tmp_path: Path) -> None:
    # Its config.json does not say that it is tied, since that is the default of its kind.
    files = make("gpt2", torch.float32, target_modules=["lm_head", "c_attn"], fan_in_fan_out=False)
    export_adapter(files.model, files.adapter, output=tmp_path / "ours")
    ours, adapted = _load(tmp_path / "ours"), _adapted(files)
    torch.testing.assert_close(_logits(ours), _logits(adapted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_saved_modules_of_tied_models_are_those_of_peft(
    make: Callable[..., Files], tmp_path: Path, saved: list[str]
) -> None:
    files = make("llama", torch.float32, tied=True, target_modules=["q_proj"], modules_to_save=saved)
    export_adapter(files.model, files.adapter, output=tmp_path / "ours")
    ours, adapted = _load(tmp_path / "ours"), _adapted(files)
    torch.testing.assert_close(_logits(ours), _logits(adapted), rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = adapted.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_another_dtype_is_that_of_the_loaded_model(
    make: Callable[..., Files], tmp_path: Path, dtype: str
) -> None:
    files = make("llama", torch.float32, "20KB", target_modules=ALL_LINEAR)
    export_adapter(files.model, files.adapter, output=tmp_path / "kept")
    export_adapter(files.model, files.adapter, output=tmp_path / "cast", dtype=dtype)  # type: ignore[arg-type]
    kept, cast = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "kept", tmp_path / "cast")
    )
    torch_dtype = getattr(torch, dtype)
    assert _load(tmp_path / "cast").dtype == torch_dtype
    assert all(torch.equal(cast[name], tensor.to(torch_dtype)) for name, tensor in kept.items())


def test_the_tokenizer_and_its_template_come_along(
    tiny_checkpoint: Path, tiny_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    export_adapter(tiny_checkpoint, tiny_adapter(seed=1), output=tmp_path / "ours")
    chat = [{"role": "user", "content": "Give me a recipe."}]
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "ours", tiny_checkpoint))
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
