"""Model checkpoints in safetensors form, read one tensor at a time and found by name.

No model is ever instantiated. Each read opens its shard anew and maps only that tensor;
when the tensor is dropped its pages go too, so resident memory stays at a few weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safemerge.errors import CheckpointError, MismatchError, UnsupportedAdapterError
from safemerge.records import json_digest
from safemerge.storage.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from safemerge.storage.architectures import text_config
from safemerge.storage.digests import file_digest
from safemerge.storage.hub import MODEL_FILES
from safemerge.storage.weight_places import PlaceFinder, WeightPlace

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

ARCHITECTURE_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""Settings of config.json in which aligned and unaligned model must agree."""

_FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

_USE_16_BITS = "take the 16-bit checkpoint that it was made of"


class TensorEntry(NamedTuple):
    """Where a tensor is, and what its header says of it."""

    file: Path
    dtype: str
    """In the words of safetensors, such as ``BF16``."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose headers have been read."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read config.json and the headers of all shards.

        Raises:
            CheckpointError: a file is missing, truncated or not what its name says; the
                weights are pickled or quantised; or it is an adapter.
        """
        if (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists():
            raise CheckpointError(f"{folder}: expected a model, got an adapter ({ADAPTER_CONFIG})")
        config = read_json(folder / "config.json")
        quantization = config.get("quantization_config") or text_config(config).get("quantization_config")
        if quantization:
            method = (
                quantization.get("quant_method", "unknown")
                if isinstance(quantization, dict)
                else quantization
            )
            raise CheckpointError(
                f"{folder}: expected weights in 16 or 32 bits, got quantised ones ({method}); {_USE_16_BITS}"
            )
        tensors: dict[str, TensorEntry] = {}
        for file, names in _shards(folder).items():
            entries = _header(file)
            if missing := sorted(names - entries.keys()):
                raise CheckpointError(
                    f"{file}: expected the tensors that {INDEX_FILE} lists, got no {_listed(missing)}"
                )
            tensors.update(entries)
        return cls(folder, config, tensors)

    def locate(self, modules: Iterable[str]) -> dict[str, WeightPlace]:
        """Where each module's weight lies in this checkpoint.

        The tensor has the module's path with ``.weight``, or another prefix of the language model; for a
        tied ``lm_head`` it is the input embedding; for one expert of a stack, see
        :mod:`safemerge.storage.architectures`.

        Args:
            modules: Paths, as of the pairs of an adapter.

        Raises:
            MismatchError: no module at all is there: the adapter has another base model. Or several
                tensors could be meant.
            CheckpointError: some modules are missing, or quantised; all are named.
            UnsupportedAdapterError: the experts are of an architecture that is not known.
        """
        modules = list(modules)
        shapes = {name: entry.shape for name, entry in self.tensors.items()}
        try:
            found = PlaceFinder(shapes, self.config).find(modules)
        except (MismatchError, UnsupportedAdapterError) as error:
            raise type(error)(f"{self.folder}: {error}") from error
        missing = sorted(set(modules) - found.keys())
        if missing and not found:
            raise MismatchError(
                f"{self.folder}: expected the base model of the adapter, got one without any of its "
                f"{len(missing)} modules: {_listed(missing)}"
            )
        if missing:
            raise CheckpointError(
                f"{self.folder}: expected a weight for every module of the adapter, "
                f"got none for {_listed(missing)}"
            )
        names = {part.name for place in found.values() for part in place}
        quantised = sorted(name for name in names if self.tensors[name].dtype not in _FLOAT_DTYPES)
        if quantised:
            kinds = ", ".join(sorted({self.tensors[name].dtype for name in quantised}))
            raise CheckpointError(
                f"{self.folder}: expected weights in 16 or 32 bits, got {kinds} in {_listed(quantised)}; "
                f"{_USE_16_BITS}"
            )
        return found

    def shape(self, place: WeightPlace) -> tuple[int, int]:
        """(d_out, d_in) of the weight at a place, from the headers.

        Raises:
            MismatchError: no matrix lies there.
        """
        shapes = []
        for part in place:
            stored = self.tensors[part.name].shape
            shape = stored if part.expert is None else stored[1:]
            if len(shape) != 2:
                raise MismatchError(f"{self.folder}: expected a matrix in {part.name}, got shape {stored}")
            shapes.append(shape[::-1] if part.transposed else shape)
        return sum(d_out for d_out, _ in shapes), shapes[0][1]

    def read(self, place: WeightPlace) -> Tensor:
        """The weight at a place, (d_out, d_in) in the dtype it is stored in, mapped from its file.

        Raises:
            CheckpointError: its file cannot be read any more.
        """
        parts = []
        for part in place:
            tensor = self.read_tensor(part.name)
            tensor = tensor if part.expert is None else tensor[part.expert]
            parts.append(tensor.T if part.transposed else tensor)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_tensor(self, name: str) -> Tensor:
        """Map one tensor as it is stored.

        Raises:
            CheckpointError: its file cannot be read any more.
        """
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt") as shard:
                tensor: Tensor = shard.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: expected the tensor {name}, got {error}") from error

    def header_digest(self) -> str:
        """sha256 of every tensor's name, dtype and shape, however they are spread over shards."""
        return json_digest({name: [entry.dtype, list(entry.shape)] for name, entry in self.tensors.items()})

    def files(self) -> list[Path]:
        """All that a program which loads the model may read, by name: shards, configs, tokenizer, template.

        The shards are those that the tensors lie in; hidden files and subfolders do not count.
        """
        beside = {path for pattern in MODEL_FILES for path in self.folder.glob(pattern) if path.is_file()}
        shown = {path for path in beside if not path.name.startswith(".")}
        return sorted(shown | {entry.file for entry in self.tensors.values()})

    def files_digest(self) -> str:
        """sha256 over the names and bytes of the model's :meth:`files`."""
        return json_digest({file.name: file_digest(file) for file in self.files()})


def check_same_architecture(aligned: Checkpoint, unaligned: Checkpoint) -> None:
    """Check that two checkpoints are weights of the same network.

    Vocabulary sizes may differ: alignment often adds tokens, and few LoRA layers see them. A setting that
    one of the two does not name is not compared: older configs lack some, and shapes are compared as well.

    Raises:
        MismatchError: a setting differs; all are named.
    """
    first, second = _architecture(aligned.config), _architecture(unaligned.config)
    wrong = [
        f"{key} (aligned {first[key]}, unaligned {second[key]})"
        for key in ARCHITECTURE_KEYS
        if first[key] != second[key] and None not in (first[key], second[key])
    ]
    if wrong:
        raise MismatchError(
            f"{unaligned.folder}: expected the architecture of {aligned.folder}, "
            f"got another {', '.join(wrong)}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected the file of a checkpoint, got no such file") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _architecture(config: dict[str, Any]) -> dict[str, Any]:
    """The settings to compare; those of the language model where it is part of a larger one."""
    inner = text_config(config)
    return {key: inner.get(key, config.get(key)) for key in ARCHITECTURE_KEYS}


def _shards(folder: Path) -> dict[Path, set[str]]:
    """Weight files, each with the tensors that the index, where there is one, expects in it."""
    if (folder / SINGLE_FILE).exists():
        return {folder / SINGLE_FILE: set()}
    if not (folder / INDEX_FILE).exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        got = f"pickled weights ({', '.join(pickled)}), which are refused" if pickled else "neither"
        raise CheckpointError(f"{folder}: expected {SINGLE_FILE} or {INDEX_FILE}, got {got}")
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE}: expected a weight_map of tensor to file, got none")
    shards: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{folder / INDEX_FILE}: expected a file name for {name}, got {file!r}")
        shards.setdefault(folder / file, set()).add(name)
    return shards


def _header(file: Path) -> dict[str, TensorEntry]:
    try:
        with safe_open(file, framework="pt") as shard:
            slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: TensorEntry(file, str(part.get_dtype()), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except FileNotFoundError as error:
        # safetensors says so of a file that it may not open, too.
        got = "one that this user may not read" if file.exists() else "no such file"
        raise CheckpointError(f"{file}: expected a shard of the checkpoint, got {got}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: expected a whole safetensors file, got a damaged one ({error})"
        ) from error


def _listed(names: list[str], limit: int = 20) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
