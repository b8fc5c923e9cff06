"""Checkpoints: found by name, read one tensor at a time, refused where they are not whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError, MismatchError
from safemerge.storage.checkpoints import Checkpoint, check_same_architecture
from safemerge.storage.weight_places import Part

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


@pytest.fixture
def folder(merge_files) -> Path:
    return merge_files.aligned


def shard(folder: Path, shards: int = 3) -> dict[str, str]:
    """Spread a checkpoint over several files with an index; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {
            name: tensor for index, (name, tensor) in enumerate(tensors.items()) if index % shards == number
        }
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


@pytest.mark.parametrize("sharded", [False, True])
def test_a_tensor_is_read_by_its_name(folder: Path, sharded: bool):
    expected = load_file(folder / "model.safetensors")
    if sharded:
        shard(folder)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.locate([Q, V]) == {Q: (Part(f"{Q}.weight"),), V: (Part(f"{V}.weight"),)}
    assert checkpoint.tensors.keys() == expected.keys()
    assert checkpoint.tensors[f"{V}.weight"].shape == (4, 8)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read_tensor(name), tensor)


def test_a_leading_model_may_be_missing_or_extra(folder: Path, edit_tensors):
    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    assert Checkpoint.open(folder).locate([Q.removeprefix("model.")]) == {
        Q.removeprefix("model."): (Part(f"{Q}.weight"),)
    }
    edit_tensors(folder / "model.safetensors", strip)
    assert Checkpoint.open(folder).locate([Q]) == {Q: (Part(f"{Q.removeprefix('model.')}.weight"),)}


@pytest.mark.parametrize(("tied", "missing"), [(True, False), (False, True)])
def test_a_tied_head_is_the_embedding(folder: Path, edit_json, tied: bool, missing: bool):
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    checkpoint = Checkpoint.open(folder)
    if missing:
        with pytest.raises(CheckpointError, match=r"got none for lm_head$"):
            checkpoint.locate([Q, "lm_head"])
    else:
        assert checkpoint.locate([Q, "lm_head"])["lm_head"] == (Part("model.embed_tokens.weight"),)


def test_missing_modules_are_all_named_in_order(folder: Path, edit_tensors):
    edit_tensors(folder / "model.safetensors", lambda t: (t.pop(f"{V}.weight"), t.pop(f"{Q}.weight")))
    with pytest.raises(
        CheckpointError, match=f"aligned: expected a weight for every module .* for {Q}, {V}$"
    ):
        Checkpoint.open(folder).locate([V, Q, "model.layers.0.self_attn.v_proj"])


def test_a_long_list_of_missing_modules_is_cut(folder: Path):
    with pytest.raises(CheckpointError, match=r"got none for extra\.00, .*, extra\.19 and 5 more$"):
        Checkpoint.open(folder).locate([Q, *(f"extra.{number:02}" for number in range(25))])


def test_a_checkpoint_without_any_of_the_modules_is_another_model(folder: Path):
    with pytest.raises(
        MismatchError, match="expected the base model of the adapter, got one without any of its 2"
    ):
        Checkpoint.open(folder).locate(["transformer.h.0.attn", "transformer.h.1.attn"])


def test_a_dtype_that_is_no_float_is_named(folder: Path, edit_tensors):
    edit_tensors(
        folder / "model.safetensors", lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].to(torch.int8)})
    )
    with pytest.raises(CheckpointError, match=f"expected weights in 16 or 32 bits, got I8 in {Q}.weight"):
        Checkpoint.open(folder).locate([Q, V])


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"quant_method": "bitsandbytes"}, "bitsandbytes"), ({"bits": 4}, "unknown"), ("gptq", "gptq")],
)
def test_a_quantised_checkpoint_is_refused_by_name(folder: Path, edit_json, setting: Any, name: str):
    message = rf"got quantised ones \({name}\); take the 16-bit checkpoint that it was made of"
    for where in ({"quantization_config": setting}, {"text_config": {"quantization_config": setting}}):
        edit_json(folder / "config.json", **{"quantization_config": ...} | where)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(folder)


@pytest.mark.parametrize("kept_bytes", [0, 4, 40, -1])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_truncated_file_is_named(folder: Path, kept_bytes: int, sharded: bool):
    if sharded:
        shard(folder)
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(
        CheckpointError, match=f"{file.name}: expected a whole safetensors file, got a damaged one"
    ):
        Checkpoint.open(folder)


def test_a_pointer_of_large_file_storage_is_no_checkpoint(folder: Path):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(CheckpointError, match=r"model.safetensors: expected a whole safetensors file"):
        Checkpoint.open(folder)


def test_a_pickled_checkpoint_is_refused(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"got pickled weights \(pytorch_model.bin\), which are refused"
    ):
        Checkpoint.open(folder)


def test_an_adapter_is_told_from_a_model(merge_files):
    with pytest.raises(
        CheckpointError, match=r"task: expected a model, got an adapter \(adapter_config\.json\)$"
    ):
        Checkpoint.open(merge_files.task)


def test_a_folder_without_weights_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"expected model.safetensors or model.safetensors.index.json, got neither"
    ):
        Checkpoint.open(folder)


def test_an_unreadable_file_is_told_from_a_missing_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:  # as safetensors does, but for root, who may read all
        raise FileNotFoundError

    monkeypatch.setattr("safemerge.storage.checkpoints.safe_open", refuse)
    with pytest.raises(CheckpointError, match=r"expected a shard .*, got one that this user may not read"):
        Checkpoint.open(folder)


def test_a_missing_shard_is_named(folder: Path):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00003.safetensors: expected a shard .*, got no such file"
    ):
        Checkpoint.open(folder)


def test_a_shard_that_lacks_what_the_index_lists_is_named(folder: Path):
    weight_map = shard(folder)
    write_index(folder, weight_map | {"extra.weight": "model-00001-of-00003.safetensors"})
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003.*index.json lists, got no extra.weight"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("file", ["../other.safetensors", 3])
def test_an_index_may_name_files_of_its_folder_only(folder: Path, file: Any):
    weight_map = shard(folder)
    write_index(folder, weight_map | {"extra.weight": file})
    with pytest.raises(CheckpointError, match=r"index.json: expected a file name for extra.weight, got"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("weight_map", [None, {}, []])
def test_an_index_without_a_map_is_refused(folder: Path, weight_map: Any):
    shard(folder)
    write_index(folder, weight_map)
    with pytest.raises(CheckpointError, match="expected a weight_map of tensor to file, got none"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: expected the file of a checkpoint, got no such file"),
        ("{", "config.json: expected JSON, got"),
        ("[]", "config.json: expected a JSON object, got list"),
    ],
)
def test_an_unusable_config_is_named(folder: Path, content: str | None, message: str):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_file_that_goes_away_between_header_and_read_is_named(folder: Path):
    checkpoint = Checkpoint.open(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"model.safetensors: expected the tensor {Q}.weight"):
        checkpoint.read_tensor(f"{Q}.weight")


def test_different_architectures_are_named_key_by_key(merge_files, edit_json):
    edit_json(merge_files.unaligned / "config.json", model_type="qwen2", hidden_size=16)
    with pytest.raises(
        MismatchError,
        match=r"model_type \(aligned llama, unaligned qwen2\), hidden_size \(aligned 8, unaligned 16\)$",
    ):
        check_same_architecture(Checkpoint.open(merge_files.aligned), Checkpoint.open(merge_files.unaligned))


def test_vocabularies_may_differ(merge_files, edit_json):
    edit_json(merge_files.unaligned / "config.json", vocab_size=15)
    check_same_architecture(Checkpoint.open(merge_files.aligned), Checkpoint.open(merge_files.unaligned))


def test_the_language_model_of_a_larger_model_is_compared(merge_files, edit_json):
    for layers, folder in ((2, merge_files.aligned), (3, merge_files.unaligned)):
        edit_json(folder / "config.json", num_hidden_layers=..., text_config={"num_hidden_layers": layers})
    with pytest.raises(MismatchError, match=r"num_hidden_layers \(aligned 2, unaligned 3\)"):
        check_same_architecture(Checkpoint.open(merge_files.aligned), Checkpoint.open(merge_files.unaligned))


def test_a_language_model_is_the_architecture_of_its_wrapper(merge_files, edit_json):
    text = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}
    edit_json(merge_files.unaligned / "config.json", model_type="llava", hidden_size=5, text_config=text)
    check_same_architecture(Checkpoint.open(merge_files.aligned), Checkpoint.open(merge_files.unaligned))


def test_a_setting_that_only_one_names_is_not_compared(merge_files, edit_json):
    edit_json(merge_files.unaligned / "config.json", head_dim=4, num_key_value_heads=1)
    check_same_architecture(Checkpoint.open(merge_files.aligned), Checkpoint.open(merge_files.unaligned))


def test_the_header_digest_does_not_depend_on_sharding(folder: Path, edit_tensors):
    whole = Checkpoint.open(folder).header_digest()
    edit_tensors(folder / "model.safetensors", lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"] + 1}))
    assert Checkpoint.open(folder).header_digest() == whole  # the header only
    shard(folder)
    assert Checkpoint.open(folder).header_digest() == whole
    edit_tensors(folder / "model-00001-of-00003.safetensors", lambda t: t.update(extra=torch.ones(1)))
    assert Checkpoint.open(folder).header_digest() != whole


def test_the_files_digest_covers_every_byte(folder: Path, edit_tensors):
    before = Checkpoint.open(folder).files_digest()
    assert Checkpoint.open(folder).files_digest() == before
    edit_tensors(folder / "model.safetensors", lambda t: t["model.embed_tokens.weight"].add_(1))
    assert Checkpoint.open(folder).files_digest() != before


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "vocab.txt",
        "x.model",
    ],
)
def test_the_files_digest_covers_what_shapes_tokens_and_answers(folder: Path, name: str):
    before = Checkpoint.open(folder).files_digest()
    (folder / name).write_text('{"model_type": "other"}')
    assert folder / name in Checkpoint.open(folder).files()
    assert Checkpoint.open(folder).files_digest() != before


def test_files_that_are_not_the_models_do_not_count(folder: Path):
    before = Checkpoint.open(folder).files_digest()
    for name in ("README.md", "pytorch_model.bin", ".stamp.json", "other.safetensors"):
        (folder / name).write_text("x")
    (folder / "vocab.txt").mkdir()
    assert Checkpoint.open(folder).files() == [folder / "config.json", folder / "model.safetensors"]
    assert Checkpoint.open(folder).files_digest() == before
