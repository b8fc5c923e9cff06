"""The tensors of a PEFT LoRA adapter: sorted by what they are, and named again when they are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import AdapterError, NonFiniteError, UnsupportedAdapterError
from safemerge.storage.adapter_config import is_saved
from safemerge.storage.architectures import EMBEDDINGS, HEADS

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<weight>\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.weight)?")
_SAVED_BASE = ".base_layer.weight"
"""PEFT saves the embeddings that it adapts, too, under this name."""


@dataclass(frozen=True)
class AdapterTensors:
    """What an adapter's file holds, by module path."""

    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(A, B), as they are stored."""
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    """DoRA's magnitude vectors."""
    saved: dict[str, Tensor] = field(default_factory=dict)
    """Parameter path in the base model to the tensor that replaces it, mapped from the file."""


def read_tensors(path: Path, config: Mapping[str, Any], *, dora: bool = False) -> AdapterTensors:
    """Read and sort the tensors of an adapter.

    Args:
        path: Its safetensors file.
        config: Its adapter_config.json.
        dora: Whether magnitude vectors may be there.

    Raises:
        UnsupportedAdapterError: a tensor is none that a LoRA update is made of; all are named.
        AdapterError: the file is damaged, or a module has only one factor.
        NonFiniteError: a tensor holds NaN or infinity; all such are named.
    """
    tensors = _read(path)
    halves: dict[str, dict[str, Tensor]] = {}
    found = AdapterTensors()
    unknown, odd = [], []
    for name, tensor in tensors.items():
        bare = name.removeprefix(PREFIX)
        factor, magnitude = _FACTOR.fullmatch(bare), _MAGNITUDE.fullmatch(bare)
        if bare == name:
            unknown.append(name)
        elif factor and _is_factor_name(factor):
            odd += [name] if tensor.ndim != 2 or not tensor.is_floating_point() else []
            halves.setdefault(factor["module"], {})[factor["side"]] = tensor.clone()
        elif magnitude and dora:
            found.magnitudes[magnitude["module"]] = tensor.flatten().clone()
        elif saved := _saved_parameter(bare, config):
            found.saved[saved] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise UnsupportedAdapterError(
            f"{path}: expected tensors named base_model.model.<module>.lora_A.weight or .lora_B.weight, "
            f"got {', '.join(unknown)}"
        )
    if odd:
        raise UnsupportedAdapterError(
            f"{path}: expected float matrices, got something else in {', '.join(odd)}"
        )
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NonFiniteError(f"{path}: expected finite numbers, got NaN or infinity in {', '.join(broken)}")
    single = sorted(module for module, sides in halves.items() if len(sides) != 2)
    if single:
        raise AdapterError(
            f"{path.parent}: expected lora_A and lora_B of every module, got only one in {', '.join(single)}"
        )
    found.factors.update({module: (sides["A"], sides["B"]) for module, sides in halves.items()})
    return found


def named_tensors(pairs: Mapping[str, LoraPair], saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that PEFT gives them.

    Args:
        pairs: Module path to pair, as stored: experts in one.
        saved: Parameter path to tensor.
    """
    tensors = {}
    for module in sorted(pairs):
        a, b = ("embedding_A", "embedding_B") if _is_embedding(module) else ("A.weight", "B.weight")
        tensors[f"{PREFIX}{module}.lora_{a}"] = pairs[module].lora_a.contiguous()
        tensors[f"{PREFIX}{module}.lora_{b}"] = pairs[module].lora_b.contiguous()
    for name in sorted(saved):
        module = name.removesuffix(".weight")
        tensors[f"{PREFIX}{module}{_SAVED_BASE}" if module in pairs else PREFIX + name] = saved[name]
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path}: expected a whole safetensors file, got a damaged one ({error})"
        ) from error
    if not tensors:
        raise AdapterError(f"{path}: expected LoRA tensors, got an empty file")
    return tensors


def _is_embedding(module: str) -> bool:
    return _leaf(module) in EMBEDDINGS


def _is_factor_name(found: re.Match[str]) -> bool:
    """Whether embeddings, and they alone, have factors without ``.weight``."""
    embedding = bool(found["embedding"])
    return embedding == _is_embedding(found["module"]) and embedding != bool(found["weight"])


def _saved_parameter(bare: str, config: Mapping[str, Any]) -> str | None:
    """Path in the base model of a parameter that the adapter replaces; None of any other tensor.

    PEFT saves what ``modules_to_save`` names, and on its own embeddings and heads that were resized or
    are adapted.
    """
    if ".lora_" in bare or ".token_adapter." in bare:
        return None
    module, _, parameter = bare.removesuffix(_SAVED_BASE).rpartition(".")
    if bare.endswith(_SAVED_BASE):
        module, parameter = bare.removesuffix(_SAVED_BASE), "weight"
    known = _leaf(module) in EMBEDDINGS | HEADS or is_saved(config, module)
    return f"{module}.{parameter}" if known else None


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def listed_modules(names: Iterable[str]) -> str:
    """Modules that parameters belong to, for messages."""
    return ", ".join(sorted({name.rpartition(".")[0] for name in names}))
