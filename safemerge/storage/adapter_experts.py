"""Experts of a mixture that PEFT adapts as one parameter: split into a pair for each, and packed again.

PEFT stacks the factors of all experts: A is (experts · r, d_in), expert by expert; B is (d_out, r · experts),
with the experts next to each other. Wrappers are nested where several parameters of a container are adapted:
the first is the innermost, under ``base_layer``.

Source: ``ParamWrapper`` of PEFT's tuners/lora/layer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import AdapterError, UnsupportedAdapterError
from safemerge.storage.adapter_config import ends_with, setting
from safemerge.storage.architectures import EXPERT, EXPERT_PARAMETERS

Factors = tuple[Tensor, Tensor]

_WRAPPED = ".base_layer"


def split_experts(
    folder: Path, config: Mapping[str, Any], factors: Mapping[str, Factors]
) -> tuple[dict[str, Factors], dict[str, Factors]]:
    """Tell the factors of single modules from those of stacked experts, and split the latter.

    Args:
        folder: The adapter, for messages.
        config: Its adapter_config.json.
        factors: Module path to (A, B), as stored.

    Returns:
        Those of single modules, and those of each expert, such as
        ``model.layers.0.mlp.experts.gate_up_proj.3``.

    Raises:
        UnsupportedAdapterError: ``target_parameters`` names parameters that are no weights of experts.
        AdapterError: the tensors are not those that the config says.
    """
    targets = config.get("target_parameters") or []
    odd = [target for target in targets if target.rpartition(".")[2] not in {*EXPERT_PARAMETERS, "weight"}]
    if odd:
        raise UnsupportedAdapterError(
            f"{folder}: expected target_parameters that are weights, or {' and '.join(EXPERT_PARAMETERS)} of "
            f"experts, got {', '.join(sorted(odd))}"
        )
    single, stacks = {}, dict[str, dict[int, Factors]]()
    for module, pair in factors.items():
        container = module
        while container.endswith(_WRAPPED):
            container = container.removesuffix(_WRAPPED)
        if _parameters(container, targets):
            depth = (len(module) - len(container)) // len(_WRAPPED)
            stacks.setdefault(container, {})[depth] = pair
        else:
            single[module] = pair
    experts: dict[str, Factors] = {}
    for container, nested in stacks.items():
        parameters = _parameters(container, targets)
        if sorted(nested) != list(range(len(parameters))):
            raise AdapterError(
                f"{folder}: expected factors of {' and '.join(parameters)} of {container}, "
                f"as target_parameters says, got {len(nested)} pairs"
            )
        for depth, parameter in enumerate(reversed(parameters)):
            path = f"{container}.{parameter}"
            rank = setting(folder, config, "r", "rank_pattern", path)
            experts |= {
                f"{path}.{index}": pair
                for index, pair in enumerate(_split(folder, path, nested[depth], rank))
            }
    return single, experts


def pack_experts(pairs: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
    """The same updates with those of experts packed as PEFT stores them.

    Args:
        pairs: Module path to pair; all experts of one parameter have one rank and scale 1.
    """
    packed: dict[str, LoraPair] = {}
    stacks: dict[str, dict[str, list[LoraPair]]] = {}
    for module in sorted(pairs, key=_expert_order):
        if expert := EXPERT.fullmatch(module):
            stacks.setdefault(expert["container"], {}).setdefault(expert["parameter"], []).append(
                pairs[module]
            )
        else:
            packed[module] = pairs[module]
    for container, parameters in stacks.items():
        inside_out = [parameter for parameter in EXPERT_PARAMETERS if parameter in parameters]
        for depth, parameter in enumerate(reversed(inside_out)):
            experts = parameters[parameter]
            packed[container + depth * _WRAPPED] = LoraPair(
                torch.cat([pair.lora_a for pair in experts]),
                torch.stack([pair.lora_b for pair in experts], dim=2).flatten(1),
            )
    return packed


def _parameters(container: str, targets: Iterable[str]) -> list[str]:
    """The stacked parameters of a container that are targeted, in the order of their declaration."""
    if container.rpartition(".")[2] != "experts":
        return []
    return [name for name in EXPERT_PARAMETERS if ends_with(f"{container}.{name}", targets)]


def _split(folder: Path, path: str, factors: Factors, rank: float) -> list[Factors]:
    lora_a, lora_b = factors
    rows = lora_a.shape[0]
    if rank < 1 or rows % rank or lora_b.shape[1] != rows:
        raise AdapterError(
            f"{folder}: {path}: expected the factors of several experts of rank {rank:g}, "
            f"got lora_A {tuple(lora_a.shape)}, lora_B {tuple(lora_b.shape)}"
        )
    experts = rows // int(rank)
    a = lora_a.reshape(experts, int(rank), -1)
    b = lora_b.reshape(lora_b.shape[0], int(rank), experts)
    return [(a[index], b[:, :, index]) for index in range(experts)]


def _expert_order(module: str) -> tuple[str, int]:
    path, _, index = module.rpartition(".")
    return (path, int(index)) if index.isdigit() else (module, -1)
