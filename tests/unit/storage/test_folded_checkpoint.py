"""Checkpoints with updates folded in: each stored tensor against the formula in float64, wherever it lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import MismatchError
from safemerge.storage import shards
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.folded_checkpoint import FoldedCheckpoint, WeightChanges

# Sums of two products and a weight, of numbers near 1, in fp32.
FP32 = {"rtol": 0, "atol": 5e-6}

Make = Callable[..., Checkpoint]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK_ELEMENTS", 8)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Make:
    """A function that writes random tensors of these shapes as a checkpoint, into the files given."""

    def make(
        shapes: dict[str, tuple[int, ...]], files: dict[str, str] | None = None, **config: Any
    ) -> Checkpoint:
        generator = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
        if files is None:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            return Checkpoint.open(folder)
        for file in set(files.values()):
            save_file({name: tensors[name] for name in files if files[name] == file}, folder / file)
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return Checkpoint.open(folder)

    return make


def _pair(d_out: int, d_in: int, seed: int = 1) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    return LoraPair(
        torch.randn(2, d_in, generator=generator), torch.randn(d_out, 2, generator=generator), 0.5
    )


def _changes(pairs: dict[str, LoraPair], **more: Any) -> WeightChanges:
    return WeightChanges({module: pair.shape for module, pair in pairs.items()}, pairs.__getitem__, **more)


def _write(folded: FoldedCheckpoint, tmp_path: Path) -> dict[str, Tensor]:
    target = tmp_path / "target"
    target.mkdir()
    folded.write(target)
    return {name: tensor for file in target.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _stored(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {name: checkpoint.read_tensor(name).clone() for name in checkpoint.tensors}


def test_shards_keep_their_names_and_only_what_changes_changes(checkpoint: Make, tmp_path: Path) -> None:
    shapes = {"model.layers.0.q_proj.weight": (6, 4), "model.layers.1.q_proj.weight": (6, 4), "model.n": (3,)}
    files = [f"{number}.safetensors" for number in ("one", "two", "two")]
    source = checkpoint(shapes, dict(zip(shapes, files, strict=True)))
    old, pair = _stored(source), _pair(6, 4)
    folded = FoldedCheckpoint(source, _changes({"model.layers.1.q_proj": pair}))
    new = _write(folded, tmp_path)
    assert folded.changed == ("model.layers.1.q_proj.weight",)
    assert not folded.untied
    expected = old["model.layers.1.q_proj.weight"].double() + pair.delta(torch.float64)
    torch.testing.assert_close(new["model.layers.1.q_proj.weight"].double(), expected, **FP32)
    assert torch.equal(new["model.n"], old["model.n"])
    target = tmp_path / "target"
    assert (target / "one.safetensors").read_bytes() == (source.folder / "one.safetensors").read_bytes()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == (6 * 4 * 2 + 3) * 4
    assert folded.n_bytes == sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert folded.needed_bytes == folded.n_bytes


def test_an_update_of_full_rank_is_made_once_a_tensor(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint({"model.q_proj.weight": (6, 4), "model.k_proj.weight": (6, 4)})
    deltas = {f"model.{name}_proj": _pair(6, 4, seed).delta() for seed, name in enumerate("qk")}
    made = []

    def update(module: str) -> Tensor:
        made.append(module)
        return deltas[module]

    old = _stored(source)
    new = _write(FoldedCheckpoint(source, WeightChanges(dict.fromkeys(deltas, (6, 4)), update)), tmp_path)
    assert sorted(made) == sorted(deltas)
    for module, delta in deltas.items():
        assert torch.equal(new[f"{module}.weight"], old[f"{module}.weight"] + delta)


def test_stored_transposed_with_and_without_dora(checkpoint: Make, tmp_path: Path) -> None:
    shapes = {"transformer.h.0.c_attn.weight": (5, 6), "transformer.h.1.c_attn.weight": (5, 6)}
    source = checkpoint(shapes, model_type="gpt2")
    pairs = {name.removesuffix(".weight"): _pair(6, 5, seed) for seed, name in enumerate(shapes)}
    magnitude = torch.rand(6) + 0.5
    old = _stored(source)
    changes = _changes(pairs, magnitudes={"transformer.h.1.c_attn": magnitude})
    new = _write(FoldedCheckpoint(source, changes), tmp_path)
    plain, rescaled = (old[name].double().T + pairs[name[:-7]].delta(torch.float64) for name in shapes)
    rescaled = magnitude.double()[:, None] * rescaled / rescaled.norm(dim=1, keepdim=True)
    for name, expected in zip(shapes, (plain, rescaled), strict=True):
        torch.testing.assert_close(new[name].double(), expected.T, **FP32)


def test_experts_of_a_stack_each_get_their_own(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint({"model.layers.0.mlp.experts.down_proj": (3, 4, 6)}, model_type="gpt_oss")
    modules = [f"model.layers.0.mlp.experts.down_proj.{index}" for index in range(3)]
    pairs = {module: _pair(6, 4, seed) for seed, module in enumerate(modules)}
    (old,) = _stored(source).values()
    (new,) = _write(FoldedCheckpoint(source, _changes(pairs)), tmp_path).values()
    for index, module in enumerate(modules):
        expected = old[index].double() + pairs[module].delta(torch.float64).T
        torch.testing.assert_close(new[index].double(), expected, **FP32)


def test_one_update_over_several_tensors_is_split_by_rows(checkpoint: Make, tmp_path: Path) -> None:
    experts = "model.layers.0.block_sparse_moe.experts"
    shapes = {f"{experts}.0.{name}.weight": (3, 4) for name in ("w1", "w3")}
    source = checkpoint(shapes, model_type="mixtral")
    pair = _pair(6, 4)
    old = _stored(source)
    changes = _changes({"model.layers.0.mlp.experts.gate_up_proj.0": pair})
    new = _write(FoldedCheckpoint(source, changes), tmp_path)
    delta = pair.delta(torch.float64)
    for name, rows in zip(shapes, (delta[:3], delta[3:]), strict=True):
        torch.testing.assert_close(new[name].double(), old[name].double() + rows, **FP32)


def test_a_saved_parameter_replaces_the_stored_one_and_an_update_goes_on_top(
    checkpoint: Make, tmp_path: Path
) -> None:
    shapes = {"model.norm.weight": (4,), "model.norm.bias": (4,), "lm_head.weight": (5, 4), "model.s": ()}
    source = checkpoint(shapes)
    saved = {"model.norm.bias": torch.arange(4.0), "lm_head.weight": torch.randn(5, 4)}
    pair = _pair(5, 4)
    old = _stored(source)
    folded = FoldedCheckpoint(source, _changes({"lm_head": pair}, saved=saved))
    new = _write(folded, tmp_path)
    assert folded.changed == ("lm_head.weight", "model.norm.bias")
    assert torch.equal(new["model.norm.bias"], saved["model.norm.bias"])
    assert torch.equal(new["model.norm.weight"], old["model.norm.weight"])
    expected = saved["lm_head.weight"].double() + pair.delta(torch.float64)
    torch.testing.assert_close(new["lm_head.weight"].double(), expected, **FP32)


def test_what_does_not_fit_is_named_in_full(checkpoint: Make) -> None:
    shapes = {
        "model.a.weight": (5, 4),
        "model.b.weight": (5, 4),
        "model.c.weight": (5, 4),
        "model.n.weight": (4,),
    }
    source = checkpoint(shapes)
    pairs = {"model.a": _pair(5, 3), "model.b": _pair(5, 4)}
    saved = {"model.c.weight": torch.ones(6, 4), "model.n.bias": torch.ones(4)}
    with pytest.raises(
        MismatchError,
        match=r"the adapter does not fit: model.a \(expected \(5, 3\) as of the update, got \(5, 4\)\); "
        r"model.c.weight \(expected \(6, 4\) as of the saved tensor, got \(5, 4\)\); "
        r"model.n.bias \(expected \(4,\) as of the saved tensor, got no such tensor\)",
    ):
        FoldedCheckpoint(source, _changes(pairs, saved=saved))


TIED = {"model.embed_tokens.weight": (7, 4), "model.q_proj.weight": (4, 4)}


@pytest.mark.parametrize(
    "adapted", [("lm_head",), ("model.embed_tokens",), ("lm_head", "model.embed_tokens")]
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tied_output_embedding_gets_weights_of_its_own(
    checkpoint: Make, tmp_path: Path, adapted: tuple[str, ...], sharded: bool
) -> None:
    files = {"model.embed_tokens.weight": "1.safetensors", "model.q_proj.weight": "2.safetensors"}
    source = checkpoint(
        TIED, files if sharded else None, tie_word_embeddings=True, architectures=["LlamaForCausalLM"]
    )
    shapes = {"lm_head": (7, 4), "model.embed_tokens": (4, 7)}
    pairs = {module: _pair(*shapes[module]) for module in adapted}
    old = _stored(source)["model.embed_tokens.weight"].double()
    folded = FoldedCheckpoint(source, _changes(pairs))
    new = _write(folded, tmp_path)
    head = old + pairs["lm_head"].delta(torch.float64) if "lm_head" in pairs else old
    embedding = "model.embed_tokens"
    inner = old + pairs[embedding].delta(torch.float64).T if embedding in pairs else old
    torch.testing.assert_close(new["lm_head.weight"].double(), head, **FP32)
    torch.testing.assert_close(new["model.embed_tokens.weight"].double(), inner, **FP32)
    assert folded.untied
    assert "lm_head.weight" in folded.changed
    assert json.loads((tmp_path / "target" / "config.json").read_text())["tie_word_embeddings"] is False
    if sharded:
        index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == files | {"lm_head.weight": "1.safetensors"}


def test_a_tied_head_that_is_stored_as_well_is_only_untied(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint(TIED | {"lm_head.weight": (7, 4)}, tie_word_embeddings=True)
    old, pair = _stored(source), _pair(7, 4)
    folded = FoldedCheckpoint(source, _changes({"lm_head": pair}))
    new = _write(folded, tmp_path)
    assert folded.untied
    assert new.keys() == old.keys()
    expected = old["lm_head.weight"].double() + pair.delta(torch.float64)
    torch.testing.assert_close(new["lm_head.weight"].double(), expected, **FP32)


@pytest.mark.parametrize(
    ("module", "config"),
    [
        ("model.q_proj", {"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}),
        ("model.embed_tokens", {"tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"]}),
        ("model.embed_tokens", {"architectures": ["BertModel"]}),
        ("model.embed_tokens", {}),
    ],
)
def test_no_head_is_made_where_none_is_needed(checkpoint: Make, module: str, config: dict[str, Any]) -> None:
    source = checkpoint(TIED, **config)
    shape = (4, 4) if module == "model.q_proj" else (4, 7)
    folded = FoldedCheckpoint(source, _changes({module: _pair(*shape)}))
    assert not folded.untied
    assert folded.changed == (f"{module}.weight",)


def test_a_dtype_is_that_of_every_float_tensor_and_of_the_config(checkpoint: Make, tmp_path: Path) -> None:
    source = checkpoint(TIED, dtype="float32")
    new = _write(FoldedCheckpoint(source, WeightChanges(), "bfloat16"), tmp_path)
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "target" / "config.json").read_text())["dtype"] == "bfloat16"
