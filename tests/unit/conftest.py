"""Checkpoints and adapters of a network that exists only as files: enough for all that is read by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from torch import Tensor

MODULES = tuple(f"model.layers.{index}.self_attn.{name}" for index in (0, 1) for name in ("q_proj", "v_proj"))
"""The adapted modules: (8, 8) queries and (4, 8) values, as with grouped-query attention."""


class MergeFiles(NamedTuple):
    """Folders of a task adapter, a safety adapter, an aligned and an unaligned model."""

    task: Path
    safety: Path
    aligned: Path
    unaligned: Path


def _write_checkpoint(folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {"model.embed_tokens.weight": torch.randn(16, 8, generator=generator)}
    for module in MODULES:
        d_out = 8 if module.endswith("q_proj") else 4
        tensors[f"{module}.weight"] = torch.randn(d_out, 8, generator=generator)
        tensors[f"{module}.bias"] = torch.randn(d_out, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config))


def _write_adapter(folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in MODULES:
        d_out = 8 if module.endswith("q_proj") else 4
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(3, 8, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(d_out, 3, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def merge_files(tmp_path: Path) -> MergeFiles:
    """Whole and fitting inputs of a merge, for a test to read or to spoil."""
    files = MergeFiles(*(tmp_path / name for name in MergeFiles._fields))
    for seed, folder in enumerate((files.task, files.safety)):
        _write_adapter(folder, seed)
    for seed, folder in enumerate((files.aligned, files.unaligned), start=2):
        _write_checkpoint(folder, seed)
    return files


@pytest.fixture
def edit_tensors() -> Callable[[Path, Callable[[dict[str, Tensor]], Any]], None]:
    """A function that loads a safetensors file, lets another change the tensors, and saves them."""
    from safetensors.torch import load_file, save_file

    def edit(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return edit


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """A function that sets keys of a JSON file; a key set to ``...`` is removed."""

    def edit(file: Path, **values: Any) -> None:
        content = json.loads(file.read_text()) | values
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit
