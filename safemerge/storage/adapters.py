"""PEFT LoRA adapter folders: read into LoRA pairs, refused by name where no pair holds them, written back."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import AdapterError, MismatchError, NonFiniteError, UnsupportedAdapterError
from safemerge.records import json_digest
from safemerge.storage.digests import file_digest
from safemerge.storage.hub import hub_id

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TENSOR_NAME = re.compile(re.escape(_PREFIX) + r".+\.lora_[AB]\.weight")

_PLAIN_SETTINGS = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
        "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "peft_type", "peft_version",
        "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
        "task_type", "use_rslora", "velora_config",
    }
)  # fmt: skip
"""Settings that leave the update scale · B · A. Any other setting that is on is refused by its name."""

_DIGESTED_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "task_type")

_UNTRAINED: dict[str, Any] = {
    "init_lora_weights": True,
    "eva_config": None,
    "loftq_config": {},
    "velora_config": None,
}
"""How the task adapter was started and trained says nothing of a merged one."""

_OFF: tuple[object, ...] = (None, False, [], {}, "none", "")

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the adapter's first value out of the base weights."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that has been read."""

    folder: Path
    config: dict[str, Any]
    """adapter_config.json as it stands."""
    pairs: dict[str, LoraPair]
    """Module path, such as ``model.layers.0.self_attn.q_proj``, to its update."""


def read_adapter(folder: Path) -> Adapter:
    """Read a PEFT LoRA adapter folder.

    Raises:
        UnsupportedAdapterError: a kind of adapter that no LoRA pair can hold; it is named.
        AdapterError: files are missing, pickled or damaged, or do not fit each other.
        NonFiniteError: a tensor holds NaN or infinity; all such are named.
    """
    config = read_config(folder)
    factors = _group(folder, _read_tensors(folder / TENSORS_FILE))
    pairs = {module: _pair(folder, config, module, *sides) for module, sides in factors.items()}
    return Adapter(folder, config, pairs)


def read_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json and refuse what is not plain LoRA; tensors are not touched.

    Raises:
        UnsupportedAdapterError: a kind of adapter that no LoRA pair can hold; it is named.
        AdapterError: files are missing, pickled or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterError(f"{folder}: expected a PEFT adapter with {CONFIG_FILE}, got none") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: expected a JSON object, got {type(config).__name__}")
    refuse_variants(folder, config)
    if not (folder / TENSORS_FILE).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        got = f"only {', '.join(pickled)}: pickled adapters are refused" if pickled else "none"
        raise AdapterError(f"{folder}: expected {TENSORS_FILE}, got {got}")
    return config


def write_adapter(folder: Path, pairs: Mapping[str, LoraPair], template: Mapping[str, Any]) -> None:
    """Write merged pairs as a PEFT adapter; the bytes depend on the arguments alone.

    Args:
        folder: An existing folder.
        pairs: Module path to pair: scale 1, all of one rank, fp32.
        template: Config of the task adapter; r and lora_alpha are set to the common rank,
            the patterns are cleared and rsLoRA is off, so that PEFT's scaling is 1.

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
        **_UNTRAINED,
    }
    tensors = {}
    for module in sorted(pairs):
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = pairs[module].lora_a.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = pairs[module].lora_b.contiguous()
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_adapter(source: Path, folder: Path) -> None:
    """Copy an adapter's config and tensors bit for bit into an existing folder."""
    for name in (CONFIG_FILE, TENSORS_FILE):
        shutil.copyfile(source / name, folder / name)


def adapter_digest(folder: Path) -> str:
    """sha256 of an adapter: the settings that shape its update, and the bytes of its tensors file.

    Where it was trained, from which path and by which PEFT version do not count.

    Raises:
        AdapterError: as :func:`read_config`.
    """
    config = read_config(folder)
    settings = {key: config.get(key) for key in _DIGESTED_SETTINGS}
    return json_digest({"config": settings, "tensors": file_digest(folder / TENSORS_FILE)})


def check_same_base(
    task: Mapping[str, Any], safety: Mapping[str, Any], aligned_model: str | Path
) -> tuple[str, ...]:
    """Check that the adapters were trained on one model, the aligned one, as far as names can tell.

    Hub ids tell models apart. Folders do not, since they are moved, and downloaded from a hub id.

    Args:
        task: adapter_config.json of the task adapter.
        safety: The same of the safety adapter.
        aligned_model: Folder or hub id.

    Returns:
        A warning where the adapters' names differ in a way that proves nothing.

    Raises:
        MismatchError: hub ids differ; all are named.
    """
    bases = {
        "task adapter": _base_of(task),
        "safety adapter": _base_of(safety),
        "aligned model": aligned_model,
    }
    ids = {role: name for role, base in bases.items() if base and (name := hub_id(base))}
    if len(set(ids.values())) > 1:
        got = ", ".join(f"{bases[role]} ({role})" for role in ids)
        raise MismatchError(
            f"expected adapters of one base model, the aligned one, got {got}; where these are one model, "
            f"let base_model_name_or_path in the {CONFIG_FILE} say so"
        )
    first, second = bases["task adapter"], bases["safety adapter"]
    if first and second and _place(first) != _place(second):
        return (f"the task adapter names {first} as its base model, the safety adapter {second}",)
    return ()


def refuse_variants(folder: Path | str, config: Mapping[str, Any]) -> None:
    """Refuse adapters whose update is not scale · B · A of the stored factors.

    Args:
        folder: Where the adapter is, for the message.
        config: adapter_config.json.

    Raises:
        UnsupportedAdapterError: naming each setting.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(f"{folder}: expected a LoRA adapter, got peft_type {kind}")
    variants = sorted(
        f"{key}={json.dumps(value)}"
        for key, value in config.items()
        if key not in _PLAIN_SETTINGS and value not in _OFF
    )
    initialisation = str(config.get("init_lora_weights", True)).lower()
    if initialisation.startswith(_CHANGES_BASE):
        variants.append(f"init_lora_weights={initialisation} (it changes the base model's weights)")
    if variants:
        raise UnsupportedAdapterError(
            f"{folder}: expected a plain LoRA adapter, got what no LoRA update holds: {', '.join(variants)}"
        )


def _base_of(config: Mapping[str, Any]) -> str | None:
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def _place(base: str | Path) -> str:
    return hub_id(base) or str(Path(base).expanduser().resolve())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path}: expected a whole safetensors file, got a damaged one ({error})"
        ) from error
    if not tensors:
        raise AdapterError(f"{path}: expected LoRA tensors, got an empty file")
    unknown = [name for name in tensors if not _TENSOR_NAME.fullmatch(name)]
    if unknown:
        raise UnsupportedAdapterError(
            f"{path}: expected tensors named base_model.model.<module>.lora_A.weight or .lora_B.weight, "
            f"got {', '.join(unknown)}"
        )
    odd = [name for name, tensor in tensors.items() if tensor.ndim != 2 or not tensor.is_floating_point()]
    if odd:
        raise UnsupportedAdapterError(
            f"{path}: expected float matrices, got something else in {', '.join(odd)}"
        )
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NonFiniteError(f"{path}: expected finite numbers, got NaN or infinity in {', '.join(broken)}")
    return tensors


def _group(folder: Path, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path to (A, B)."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, side = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        halves.setdefault(module, {})[side] = tensor
    single = sorted(module for module, sides in halves.items() if len(sides) != 2)
    if single:
        raise AdapterError(
            f"{folder}: expected lora_A and lora_B of every module, got only one in {', '.join(single)}"
        )
    return {module: (sides["A"], sides["B"]) for module, sides in halves.items()}


def _pair(folder: Path, config: dict[str, Any], module: str, lora_a: Tensor, lora_b: Tensor) -> LoraPair:
    rank = _setting(folder, config, "r", "rank_pattern", module)
    alpha = _setting(folder, config, "lora_alpha", "alpha_pattern", module)
    if not 0 < rank == lora_a.shape[0]:
        raise AdapterError(
            f"{folder}: {module}: expected rank {rank:g} as configured, got lora_A {tuple(lora_a.shape)}"
        )
    try:
        return LoraPair(lora_a, lora_b, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
    except MismatchError as error:
        raise AdapterError(f"{folder}: {module}: {error}") from error


def _setting(folder: Path, config: dict[str, Any], key: str, pattern_key: str, module: str) -> float:
    """The value for one module: the first pattern that matches the end of its path, else the adapter's own.

    A pattern is a regular expression that matches whole path components at the end, as in PEFT.
    """
    value = config.get(key)
    for pattern, special in (config.get(pattern_key) or {}).items():
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise AdapterError(
                f"{folder}: {pattern_key}: expected a regular expression, got {pattern!r}"
            ) from error
        if matches:
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AdapterError(f"{folder}: {key} of {module}: expected a number, got {value!r}")
    return value
