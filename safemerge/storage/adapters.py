"""PEFT LoRA adapter folders: read into LoRA pairs, refused by name where no pair holds them, written back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import AdapterError, MismatchError
from safemerge.records import json_digest
from safemerge.storage.adapter_config import CONFIG_FILE, TENSORS_FILE, check_targeted, read_config, setting
from safemerge.storage.adapter_experts import Factors, pack_experts, split_experts
from safemerge.storage.adapter_tensors import listed_modules, named_tensors, read_tensors
from safemerge.storage.architectures import EXPERT, LINEAR_EXPERT, stem
from safemerge.storage.digests import file_digest

_DIGESTED_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "task_type")

UNTRAINED: dict[str, Any] = {
    "init_lora_weights": True,
    "eva_config": None,
    "loftq_config": {},
    "velora_config": None,
}
"""How the task adapter was started and trained says nothing of a merged one."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that has been read."""

    folder: Path
    config: dict[str, Any]
    """adapter_config.json as it stands."""
    pairs: dict[str, LoraPair]
    """Module path, such as ``model.layers.0.self_attn.q_proj``, to its update.

    An embedding maps one-hot tokens, so that d_in is the vocabulary. Where an adapter holds the updates of
    all experts in one, each has its own, such as ``model.layers.0.mlp.experts.gate_up_proj.3``.
    """
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    """Module path to DoRA's magnitudes, (d_out,); empty for plain LoRA."""
    saved: dict[str, Tensor] = field(default_factory=dict)
    """Parameter path in the base model, such as ``lm_head.weight``, to the tensor that replaces it.

    These are what ``modules_to_save`` trained in full, and embeddings that PEFT saves beside their update.
    They are mapped from the file, which must stay as it is.
    """


def read_adapter(folder: Path, *, dora: bool = False) -> Adapter:
    """Read a PEFT LoRA adapter folder.

    Args:
        folder: The adapter.
        dora: Whether to read DoRA adapters as well: their update is no more than a part of what they do.

    Raises:
        UnsupportedAdapterError: a kind of adapter that no LoRA pair can hold; it is named.
        AdapterError: files are missing, pickled or damaged, or do not fit each other.
        NonFiniteError: a tensor holds NaN or infinity; all such are named.
    """
    config = read_config(folder, dora=dora)
    tensors = read_tensors(folder / TENSORS_FILE, config, dora=dora)
    single, experts = split_experts(folder, config, tensors.factors)
    check_targeted(folder, config, single)
    pairs = {module: _pair(folder, config, module, module, factors) for module, factors in single.items()}
    for module, factors in experts.items():
        pairs[module] = _pair(folder, config, module, module.rpartition(".")[0], factors)
    if config.get("use_dora") and tensors.magnitudes.keys() != pairs.keys():
        odd = ", ".join(sorted(tensors.magnitudes.keys() ^ pairs.keys()))
        raise AdapterError(
            f"{folder}: expected DoRA's magnitudes of every module, got none, or no more, of {odd}"
        )
    return Adapter(folder, config, pairs, tensors.magnitudes, tensors.saved)


def write_adapter(
    folder: Path,
    pairs: Mapping[str, LoraPair],
    template: Mapping[str, Any],
    saved: Mapping[str, Tensor] | None = None,
) -> None:
    """Write merged pairs as a PEFT adapter; the bytes depend on the arguments alone.

    Args:
        folder: An existing folder.
        pairs: Module path to pair: scale 1, all of one rank, fp32.
        template: Config of the task adapter, which has the same modules; r and lora_alpha are set to the
            common rank, the patterns are cleared and rsLoRA is off, so that PEFT's scaling is 1.
        saved: Parameters that the adapter replaces in full, as read from the task adapter.

    Raises:
        AdapterError: the pairs differ in rank or their scale is not folded in.
    """
    ranks = sorted({pair.rank for pair in pairs.values()})
    if len(ranks) != 1 or any(pair.scale != 1 for pair in pairs.values()):
        raise AdapterError(f"{folder}: expected pairs of one rank with scale 1, got ranks {ranks}")
    config = dict(template) | {
        "r": ranks[0],
        "lora_alpha": ranks[0],
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "inference_mode": True,
        **UNTRAINED,
    }
    tensors = named_tensors(pack_experts(pairs), saved or {})
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def saved_warnings(task: Adapter, safety: Adapter | None) -> tuple[str, ...]:
    """What a reader must know of parameters that the adapters replace in full, which no method merges."""
    found = []
    if task.saved:
        found.append(
            f"kept from the task adapter bit for bit, neither scored nor merged: {listed_modules(task.saved)}"
        )
    others = {} if safety is None else safety.saved
    left_out = [name for name, tensor in others.items() if not _same(tensor, task.saved.get(name))]
    if left_out:
        found.append(f"left out, though the safety adapter replaces it in full: {listed_modules(left_out)}")
    return tuple(found)


def check_same_names(task: Mapping[str, LoraPair], safety: Mapping[str, LoraPair]) -> None:
    """Check that two adapters have the same names for the same layers: they are paired by these.

    Names differ where one adapter was trained on a multimodal model and the other on its language model, or
    where one holds all experts in one and the other each of them.

    Raises:
        MismatchError: they name layers differently; one is given as an example.
    """
    ours, theirs = ({stem("", module): module for module in pairs} for pairs in (task, safety))
    differing = [
        (ours[name], theirs[name]) for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]
    ]
    for single, stacked in ((task, safety), (safety, task)):
        linear = [
            module for module in single if LINEAR_EXPERT.fullmatch(module) and not EXPERT.fullmatch(module)
        ]
        experts = [module for module in stacked if EXPERT.fullmatch(module)]
        if linear and experts:
            first = linear[0], experts[0]
            differing.append(first if single is task else first[::-1])
    if differing:
        first_task, first_safety = min(differing)
        raise MismatchError(
            "expected adapters that name the same layers alike, since they are paired by name, "
            f"got {first_task} in the task adapter, {first_safety} in the safety adapter"
        )


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.dtype == other.dtype and torch.equal(tensor, other)


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy an adapter's config and tensors bit for bit into an existing folder."""
    for name in (CONFIG_FILE, TENSORS_FILE):
        shutil.copyfile(source / name, folder / name)


def adapter_digest(folder: Path, *, dora: bool = False) -> str:
    """sha256 of an adapter: the settings that shape its update, and the bytes of its tensors file.

    Where it was trained, from which path and by which PEFT version do not count.

    Args:
        folder: The adapter.
        dora: Whether to let DoRA pass.

    Raises:
        AdapterError: as :func:`read_config`.
    """
    config = read_config(folder, dora=dora)
    settings = {key: config.get(key) for key in _DIGESTED_SETTINGS}
    if config.get("use_dora"):
        settings["use_dora"] = True
    if config.get("target_parameters"):
        settings["target_parameters"] = sorted(config["target_parameters"])
    return json_digest({"config": settings, "tensors": file_digest(folder / TENSORS_FILE)})


def _pair(folder: Path, config: dict[str, Any], module: str, pattern_path: str, factors: Factors) -> LoraPair:
    lora_a, lora_b = factors
    rank = setting(folder, config, "r", "rank_pattern", pattern_path)
    alpha = setting(folder, config, "lora_alpha", "alpha_pattern", pattern_path)
    if not 0 < rank == lora_a.shape[0]:
        raise AdapterError(
            f"{folder}: {module}: expected rank {rank:g} as configured, got lora_A {tuple(lora_a.shape)}"
        )
    try:
        return LoraPair(lora_a, lora_b, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    except MismatchError as error:
        raise AdapterError(f"{folder}: {module}: {error}") from error
