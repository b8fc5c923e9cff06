"""adapter_config.json of PEFT LoRA adapters: what a LoRA update can hold, and what is said of a module."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safemerge.errors import AdapterError, UnsupportedAdapterError

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

PLAIN_SETTINGS = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules",
        "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core", "modules_to_save",
        "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config",
    }
)  # fmt: skip
"""Settings that leave the update scale · B · A.

``fan_in_fan_out`` is one: it says how a weight is stored, and PEFT sets it aside in mixed adapters, so the
architecture decides instead.
"""

REFUSED_SETTINGS = {
    "alora_invocation_tokens": "aLoRA is active for some tokens only",
    "arrow_config": "Arrow routes between adapters",
    "bias": "trained biases are no low-rank update",
    "corda_config": "CorDA changes the base model's weights",
    "ensure_weight_tying": "one update is shared by two modules",
    "kasa_config": "KaSA changes the base model's weights",
    "layer_replication": "the layers are not those of the base model",
    "lora_bias": "trained biases are no low-rank update",
    "lora_ga_config": "LoRA-GA changes the base model's weights",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "trainable_token_indices": "it replaces rows of the embedding",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "use_dora": "DoRA rescales the weight",
    "use_qalora": "QA-LoRA pools the input",
}
"""Settings that no LoRA update holds, and why. What is in neither table is refused as well."""

_OFF: tuple[object, ...] = (None, False, [], {}, "none", "")

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the adapter's first value out of the base weights."""


def read_config(folder: Path, *, dora: bool = False) -> dict[str, Any]:
    """Read adapter_config.json and refuse what is not plain LoRA; tensors are not touched.

    Args:
        folder: The adapter.
        dora: Whether to let DoRA pass.

    Raises:
        UnsupportedAdapterError: a kind of adapter that no LoRA pair can hold; it is named.
        AdapterError: files are missing, pickled or damaged.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        got = "a model (config.json)" if (folder / "config.json").exists() else "none"
        raise AdapterError(f"{folder}: expected a PEFT adapter with {CONFIG_FILE}, got {got}") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: expected a JSON object, got {type(config).__name__}")
    refuse_variants(folder, config, dora=dora)
    if not (folder / TENSORS_FILE).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        got = f"only {', '.join(pickled)}: pickled adapters are refused" if pickled else "none"
        raise AdapterError(f"{folder}: expected {TENSORS_FILE}, got {got}")
    return config


def refuse_variants(folder: Path | str, config: Mapping[str, Any], *, dora: bool = False) -> None:
    """Refuse adapters whose update is not scale · B · A of the stored factors.

    Args:
        folder: Where the adapter is, for the message.
        config: adapter_config.json.
        dora: Whether to let DoRA pass.

    Raises:
        UnsupportedAdapterError: naming each setting.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(f"{folder}: expected a LoRA adapter, got peft_type {kind}")
    passing = PLAIN_SETTINGS | ({"use_dora"} if dora else set())
    variants = sorted(
        f"{key}={json.dumps(value)} ({REFUSED_SETTINGS.get(key, 'unknown here')})"
        for key, value in config.items()
        if key not in passing and value not in _OFF
    )
    initialisation = str(config.get("init_lora_weights", True)).lower()
    if initialisation.startswith(_CHANGES_BASE):
        variants.append(f"init_lora_weights={initialisation} (it changes the base model's weights)")
    if variants:
        raise UnsupportedAdapterError(
            f"{folder}: expected a plain LoRA adapter, got what no LoRA update holds: {', '.join(variants)}"
        )


def setting(folder: Path, config: Mapping[str, Any], key: str, pattern_key: str, module: str) -> float:
    """The value for one module: the first pattern that matches the end of its path, else the adapter's own.

    A pattern is a regular expression that matches whole path components at the end, as in PEFT.

    Raises:
        AdapterError: a pattern is no regular expression, or the value no number.
    """
    value = config.get(key)
    for pattern, special in (config.get(pattern_key) or {}).items():
        if _matches(folder, pattern_key, rf"(.*\.)?({pattern})$", pattern, module):
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AdapterError(f"{folder}: {key} of {module}: expected a number, got {value!r}")
    return value


def check_targeted(folder: Path, config: Mapping[str, Any], modules: Iterable[str]) -> None:
    """Check that the settings target every module that has tensors: PEFT passes over the others in silence.

    Raises:
        AdapterError: some are not targeted; all are named.
    """
    missed = sorted(module for module in modules if not _is_targeted(folder, config, module))
    if missed:
        raise AdapterError(
            f"{folder}: expected settings that target every module with tensors, got target_modules, "
            f"layers_to_transform or exclude_modules that leave out {', '.join(missed)}"
        )


def is_saved(config: Mapping[str, Any], module: str) -> bool:
    """Whether ``modules_to_save`` names a module, or one that it is a part of.

    PEFT compares the ends of paths, letter by letter: ``norm`` names ``input_layernorm`` as well.
    """
    parts = module.split(".")
    owners = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(owner.endswith(name) for owner in owners for name in config.get("modules_to_save") or ())


def ends_with(path: str, ends: Iterable[str]) -> bool:
    """Whether a path is one of these, or ends with one by whole components."""
    return any(path == end or path.endswith(f".{end}") for end in ends)


def _is_targeted(folder: Path, config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would adapt a module."""
    if ends_with(f"{module}.weight", config.get("target_parameters") or ()):
        return True
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _named(folder, "exclude_modules", excluded, module):
        return False
    if targets is None or targets == "all-linear" or (not isinstance(targets, str) and module in targets):
        return True
    if not _named(folder, "target_modules", targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or layers is None or layers == []:
        return True
    return _layer(folder, config, module) in ([layers] if isinstance(layers, int) else layers)


def _named(folder: Path, key: str, names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return _matches(folder, key, rf"(?:{names})\Z", names, module)
    return ends_with(module, names)


def _layer(folder: Path, config: Mapping[str, Any], module: str) -> int | None:
    """Number of the layer that a module is in: the first number in its path, after ``layers_pattern``."""
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        if found:
            return int(found[1])
    return None


def _matches(folder: Path, key: str, expression: str, pattern: str, module: str) -> bool:
    try:
        return re.match(expression, module) is not None
    except re.error as error:
        raise AdapterError(f"{folder}: {key}: expected a regular expression, got {pattern!r}") from error
