"""What a merge refuses: wrong input gives one clear error, and nothing is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safemerge import merge_adapters
from safemerge.engine.merging import merge_arms
from safemerge.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DegenerateLayerError,
    MismatchError,
    NonFiniteError,
    OutputExistsError,
    UnsupportedAdapterError,
)
from safemerge.records import MergeReport
from tests.unit.conftest import MODULES


def spoil_tensor(folder: str, name: str, value: float):
    def spoil(files, edit_tensors, edit_json) -> None:
        file = next(getattr(files, folder).glob("*.safetensors"))
        edit_tensors(file, lambda tensors: tensors[name][1].fill_(value))

    return spoil


def set_json(folder: str, file: str, **values: Any):
    def spoil(files, edit_tensors, edit_json) -> None:
        edit_json(getattr(files, folder) / file, **values)

    return spoil


def rename(folder: str, old: str, new: str):
    def spoil(files, edit_tensors, edit_json) -> None:
        (getattr(files, folder) / old).rename(getattr(files, folder) / new)

    return spoil


def truncate(folder: str):
    def spoil(files, edit_tensors, edit_json) -> None:
        file = next(getattr(files, folder).glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-10])

    return spoil


def drop_tensor(folder: str, name: str):
    def spoil(files, edit_tensors, edit_json) -> None:
        edit_tensors(next(getattr(files, folder).glob("*.safetensors")), lambda tensors: tensors.pop(name))

    return spoil


def other_base(prefix: str, width: int):
    """Turn the task adapter into one of another base model: other module names, or another width."""

    def spoil(files, edit_tensors, edit_json) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for name in list(tensors):
                tensor = tensors.pop(name)
                if "lora_A" in name:
                    tensor = torch.ones(3, width)
                tensors[name.replace("model.layers", prefix)] = tensor

        for folder in (files.task, files.safety):
            edit_tensors(folder / "adapter_model.safetensors", change)

    return spoil


def remove(folder: str):
    def spoil(files, edit_tensors, edit_json) -> None:
        shutil.rmtree(getattr(files, folder))

    return spoil


V1 = f"{MODULES[3]}.weight"
A0 = f"base_model.model.{MODULES[0]}.lora_A.weight"
WRONG_INPUTS = {
    "adapter of another base model": (
        other_base("transformer.h", 8),
        MismatchError,
        "expected the base model of the adapter, got one without any",
    ),
    "adapter of another shape": (
        other_base("model.layers", 9),
        MismatchError,
        rf"{MODULES[0]} \(expected \(8, 9\) .* got aligned \(8, 8\)",
    ),
    "module missing from the aligned model": (
        drop_tensor("aligned", V1),
        CheckpointError,
        f"aligned: .*{MODULES[3]}",
    ),
    "module missing from the unaligned model": (
        drop_tensor("unaligned", V1),
        CheckpointError,
        f"unaligned: .*{MODULES[3]}",
    ),
    "another architecture": (
        set_json("unaligned", "config.json", num_hidden_layers=3),
        MismatchError,
        r"num_hidden_layers \(aligned 2, unaligned 3\)",
    ),
    "NaN in the aligned model": (
        spoil_tensor("aligned", V1, float("nan")),
        NonFiniteError,
        f"{MODULES[3]}: .*the aligned model's weight",
    ),
    "infinity in the unaligned model": (
        spoil_tensor("unaligned", V1, float("inf")),
        NonFiniteError,
        f"{MODULES[3]}: .*the unaligned model's weight",
    ),
    "NaN in the task adapter": (spoil_tensor("task", A0, float("nan")), NonFiniteError, f"task/.*{A0}"),
    "NaN in the safety adapter": (spoil_tensor("safety", A0, float("nan")), NonFiniteError, f"safety/.*{A0}"),
    "truncated aligned model": (
        truncate("aligned"),
        CheckpointError,
        r"aligned/model.safetensors: .* damaged",
    ),
    "truncated unaligned model": (
        truncate("unaligned"),
        CheckpointError,
        r"unaligned/model.safetensors: .* damaged",
    ),
    "truncated adapter": (truncate("task"), AdapterError, r"task/adapter_model.safetensors: .* damaged"),
    "pickled adapter": (
        rename("safety", "adapter_model.safetensors", "adapter_model.bin"),
        AdapterError,
        "pickled adapters are refused",
    ),
    "pickled model": (
        rename("aligned", "model.safetensors", "pytorch_model.bin"),
        CheckpointError,
        "pickled weights",
    ),
    "DoRA": (
        set_json("task", "adapter_config.json", use_dora=True),
        UnsupportedAdapterError,
        "use_dora=true",
    ),
    "lora_bias": (
        set_json("safety", "adapter_config.json", lora_bias=True),
        UnsupportedAdapterError,
        "lora_bias=true",
    ),
    "another kind of adapter": (
        set_json("task", "adapter_config.json", peft_type="LOHA"),
        UnsupportedAdapterError,
        "peft_type LOHA",
    ),
    "quantised model": (
        set_json("aligned", "config.json", quantization_config={"quant_method": "gptq"}),
        CheckpointError,
        "gptq",
    ),
    "no such adapter": (remove("task"), AdapterError, "task: expected a folder or a hub id"),
    "no such model": (remove("aligned"), CheckpointError, "aligned: expected a folder or a hub id"),
}


@pytest.mark.parametrize("kind", WRONG_INPUTS)
def test_wrong_input_gives_one_clear_error_and_leaves_nothing(
    merge_files, tmp_path: Path, edit_tensors, edit_json, kind: str
):
    spoil, error, message = WRONG_INPUTS[kind]
    spoil(merge_files, edit_tensors, edit_json)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        merge_adapters(*merge_files, output=tmp_path / "merged")
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_is_refused_before_anything_is_read(merge_files, tmp_path: Path):
    output = tmp_path / "merged"
    output.mkdir()
    for call in (
        lambda: merge_adapters("no such task", *merge_files[1:], output=output),
        lambda: merge_arms("no such task", *merge_files[1:], output=output, arms={}),
    ):
        with pytest.raises(OutputExistsError, match="merged: expected a path that does not exist yet"):
            call()
    assert list(output.iterdir()) == []


def test_wrong_options_are_refused_before_anything_is_read(merge_files, tmp_path: Path):
    with pytest.raises(ConfigError, match="got threshold and quantile"):
        merge_adapters("no such task", *merge_files[1:], output=tmp_path / "m", threshold=0.1, quantile=0.5)


@pytest.mark.parametrize("on_undefined", ["keep", "merge", "fail"])
def test_layers_that_alignment_left_alone(merge_files, tmp_path: Path, edit_tensors, on_undefined: str):
    same = load_file(merge_files.aligned / "model.safetensors")[V1]
    edit_tensors(merge_files.unaligned / "model.safetensors", lambda tensors: tensors.update({V1: same}))

    def merge() -> MergeReport:
        return merge_adapters(
            *merge_files, output=tmp_path / "merged", threshold=0, on_undefined=on_undefined
        )

    if on_undefined == "fail":
        with pytest.raises(DegenerateLayerError, match=f"{MODULES[3]}: alignment did not change the layer"):
            merge()
        assert not (tmp_path / "merged").exists()
        return
    layer = merge().layers[3]
    assert (layer.cosine, layer.merged) == (None, on_undefined == "merge")
    assert "alignment did not change the layer" in layer.reason
