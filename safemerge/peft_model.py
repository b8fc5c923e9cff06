"""SafeMERGE on a loaded ``PeftModel``: two of its adapters in, a third one added.

For those who have the model in memory already. The adapters come from the model; the
alignment is still read from the two checkpoints, tensor by tensor, so that a quantised
base does no harm.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from safemerge.core import methods
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergeResult, alignment_terms, check_layers_fit, merge_scored
from safemerge.core.options import MergeOptions, MergeSettings
from safemerge.core.scoring import Progress
from safemerge.engine.merging import merge_report
from safemerge.engine.scores import score_pairs
from safemerge.errors import ConfigError, MissingDependencyError, NonFiniteError, UnsupportedAdapterError
from safemerge.records import MergeReport, json_digest
from safemerge.storage.adapter_config import refuse_variants
from safemerge.storage.adapters import UNTRAINED
from safemerge.storage.base_models import check_same_base
from safemerge.storage.digests import tensor_digest

if TYPE_CHECKING:
    from peft import PeftModel

_FILES_ONLY = ("modules_to_save", "target_parameters")
"""Settings whose tensors are merged, or kept, in adapter folders but not in a loaded model."""


def merge_into(
    model: PeftModel,
    task_adapter: str = "task",
    safety_adapter: str | None = "safety",
    *,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    name: str = "merged",
    progress: Progress | None = None,
    **settings: Unpack[MergeSettings],
) -> MergeReport:
    """Merge two LoRA adapters of a loaded model and add the result as a third.

    The model's other adapters, which of them are active, and the base weights stay as
    they are; ``model.set_adapter(name)`` turns the new one on.

    Args:
        model: A PEFT model that holds both adapters.
        task_adapter: Name in the model of the adapter to repair.
        safety_adapter: Name in the model of the adapter that carries safety; None where the method
            needs none.
        aligned_model: Folder or hub id of the model's base.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        name: Name of the new adapter.
        progress: Called after each scored layer with layers done, layers in all, module path.
        **settings: Which layers are merged, and how: fields of
            :class:`safemerge.core.options.MergeOptions`.

    Returns:
        The report that a merge of the same adapters on disk gives, but for their digests.

    Raises:
        ConfigError: options are wrong, an adapter is not there, or the new name is taken.
        UnsupportedAdapterError: an adapter of a kind that no LoRA update holds; it is named.
        SafemergeError: files or tensors are wrong. The model is then as it was.
    """
    options = MergeOptions(**settings)
    if safety_adapter is None and methods.get(options.method).needs_safety:
        raise ConfigError(f"method {options.method}: expected a safety adapter, got none")
    roles = {"task_adapter": task_adapter, "safety_adapter": safety_adapter}
    named = {role: adapter for role, adapter in roles.items() if adapter is not None}
    _check_names(model, list(named.values()), name)
    configs = {
        role.replace("_", " "): model.peft_config[adapter].to_dict() for role, adapter in named.items()
    }
    warnings = check_same_base(configs, aligned_model)
    pairs = {role: _pairs(model, adapter) for role, adapter in named.items()}
    task, safety = pairs["task_adapter"], pairs.get("safety_adapter")
    check_layers_fit(task, safety)
    (scores,), digests = score_pairs(
        [task], aligned_model, unaligned_model, terms=alignment_terms([options]), progress=progress
    )
    result = merge_scored(task, safety, scores, options)
    _add(model, name, task_adapter, result)
    digests |= {role: _digest(found) for role, found in pairs.items()}
    return merge_report(result, options, digests, warnings)


def _check_names(model: PeftModel, adapters: Sequence[str], name: str) -> None:
    there = sorted(model.peft_config)
    for adapter in adapters:
        if adapter not in there:
            raise ConfigError(f"model: expected an adapter named {adapter!r}, got {', '.join(there)}")
        config = json.loads(json.dumps(model.peft_config[adapter].to_dict(), default=str))
        refuse_variants(f"adapter {adapter!r}", config)
        if odd := [key for key in _FILES_ONLY if config.get(key)]:
            raise UnsupportedAdapterError(
                f"adapter {adapter!r}: expected LoRA of linear layers alone, got {' and '.join(odd)}: "
                "merge the adapters' folders instead"
            )
    if name in there:
        raise ConfigError(f"name: expected one that the model does not have yet, got {name!r}")


def _lora_layers(model: PeftModel, adapter: str) -> dict[str, Any]:
    """Module path in the base model to the LoRA layer that holds the adapter there."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise MissingDependencyError("peft", "training") from error

    layers = {
        path: module
        for path, module in model.get_base_model().named_modules()
        if isinstance(module, LoraLayer) and (adapter in module.lora_A or adapter in module.lora_embedding_A)
    }
    odd = [path for path, layer in layers.items() if not _is_linear(layer, adapter)]
    if odd:
        listed = ", ".join(sorted(odd))
        raise UnsupportedAdapterError(
            f"adapter {adapter!r}: expected LoRA of linear layers, got another in {listed}"
        )
    return layers


def _is_linear(layer: Any, adapter: str) -> bool:
    """Whether the factors are two plain matrices, as they are beside quantised weights too."""
    return adapter in layer.lora_A and isinstance(layer.lora_A[adapter], torch.nn.Linear)


def _pairs(model: PeftModel, adapter: str) -> dict[str, LoraPair]:
    """The adapter's updates with the scale that the model applies, copied to the CPU."""
    pairs = {}
    for path, layer in _lora_layers(model, adapter).items():
        lora_a, lora_b = (_copied(factors[adapter].weight) for factors in (layer.lora_A, layer.lora_B))
        if not bool(torch.isfinite(lora_a).all() and torch.isfinite(lora_b).all()):
            raise NonFiniteError(f"adapter {adapter!r}: got NaN or infinity in {path}")
        pairs[path] = LoraPair(lora_a, lora_b, layer.scaling[adapter])
    return pairs


def _copied(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", copy=True)


def _add(model: PeftModel, name: str, task_adapter: str, result: MergeResult) -> None:
    """Give the model a frozen adapter with the merged factors; all of it, or on an error nothing."""
    # How the task adapter was started says nothing of the merged one, and must not run again.
    settings: dict[str, Any] = {**UNTRAINED, "inference_mode": True}
    if not result.unchanged:
        rank = next(iter(result.layers.values())).rank
        settings |= {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
        }
    config = dataclasses.replace(model.peft_config[task_adapter], **settings)
    model.add_adapter(name, config)
    try:
        for path, layer in _lora_layers(model, name).items():
            pair = result.layers[path]
            for factor, value in ((layer.lora_A[name], pair.lora_a), (layer.lora_B[name], pair.lora_b)):
                factor.weight.data = value.to(factor.weight.device)
                factor.weight.requires_grad_(False)
            layer.scaling[name] = pair.scale
    except BaseException:
        model.delete_adapter(name)
        raise


def _digest(pairs: dict[str, LoraPair]) -> str:
    """sha256 of an adapter in memory: each module's scale and the bytes of its factors."""
    return json_digest(
        {
            module: [pair.scale, tensor_digest(pair.lora_a), tensor_digest(pair.lora_b)]
            for module, pair in pairs.items()
        }
    )
