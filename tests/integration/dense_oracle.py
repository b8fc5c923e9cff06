"""Merges computed anew: densely, in float64, on whole loaded models, with none of the code that is tested.

PEFT gives each update in full, transformers each weight, so that neither where a tensor lies on disk nor how
its factors are stored is known here. The paper's formula does the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

IDS = torch.arange(12).reshape(1, 12)
WEIGHTS = (0.7, 0.4)
"""α and β: they do not add up to 1, so that neither can be mistaken for the other."""


class Dense(NamedTuple):
    """A merge as it should be."""

    cosines: dict[str, float]
    """ρ of every layer of the task adapter; experts of a stack have a number at their end."""
    threshold: float
    """Midway between the two cosines in the middle: no rounding of one decides."""
    logits: Tensor
    """Of the aligned model with W + the merged update as its weights, float64."""


def write_models(folder: Path, model: Any, seed: int = 0) -> tuple[Path, Path]:
    """Save a model with drawn weights, and once more with a change of low rank in every matrix."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        model.save_pretrained(folder / "unaligned")
        for _, weight in sorted(model.named_parameters()):
            if weight.ndim > 1:
                left = torch.randn(*weight.shape[:-1], 3, generator=generator)
                right = torch.randn(*weight.shape[:-2], 3, weight.shape[-1], generator=generator)
                weight.add_(left @ right, alpha=0.05)
        model.save_pretrained(folder / "aligned")
    return folder / "aligned", folder / "unaligned"


def write_adapter(folder: Path, model: Any, seed: int, **settings: Any) -> Path:
    """Train nothing: draw all that an adapter of this model trains, and let PEFT save it."""
    from peft import LoraConfig, get_peft_model

    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in sorted(peft_model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    peft_model.save_pretrained(folder)
    return folder


def updates(model: Any) -> dict[str, Tensor]:
    """Parameter path to the update that a loaded adapter makes of it, as the parameter is stored, float64."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    found = {}
    for path, layer in model.double().get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            name = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            parameter = f"{path.replace('.base_layer', '')}.{name}"
            found[parameter] = layer.get_delta_weight(layer.active_adapters[0]).detach().clone()
    return found


def dense_merge(
    models: tuple[Path, Path],
    adapters: tuple[Path, Path],
    load: Any,
    transposed: tuple[str, ...] = (),
    start: Path | None = None,
) -> Dense:
    """SafeMERGE of about half of the layers.

    Args:
        models: Aligned and unaligned.
        adapters: Task and safety adapter.
        load: Gives the model of a folder.
        transposed: Endings of parameter paths that are stored as (d_in, d_out).
        start: The model to change; the aligned one.
    """
    from peft import PeftModel

    task, safety = (updates(PeftModel.from_pretrained(load(models[0]), folder)) for folder in adapters)
    aligned, unaligned = (_weights(load(folder), task) for folder in models)
    cosines = {}
    for name, update in task.items():
        difference = aligned[name] - unaligned[name]
        for key, index in _keys(name, update):
            matrices = (_matrix(name, index, tensor, transposed) for tensor in (update, difference))
            cosines[key] = _cosine(*matrices)
    ordered = sorted(cosines.values())
    threshold = (ordered[len(ordered) // 2 - 1] + ordered[len(ordered) // 2]) / 2
    model = load(start or models[0]).double()
    with torch.no_grad():
        for name, update in task.items():
            merged = update.clone()
            for key, index in _keys(name, update):
                if name in safety and cosines[key] < threshold:
                    merged[index] = WEIGHTS[0] * update[index] + WEIGHTS[1] * safety[name][index]
            _add(model, name, merged)
        return Dense(cosines, threshold, model(IDS).logits)


def _keys(name: str, update: Tensor) -> list[tuple[str, Any]]:
    """The layers that a parameter is: one, or as many as there are experts; each with its index."""
    path = name.removesuffix(".weight")
    return [(path, ...)] if update.ndim == 2 else [(f"{path}.{index}", index) for index in range(len(update))]


def _matrix(name: str, index: Any, tensor: Tensor, transposed: tuple[str, ...]) -> Tensor:
    """(d_out, d_in) of one layer."""
    return tensor[index].T if name.endswith(transposed) else tensor[index]


def _weights(model: Any, names: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: model.get_parameter(name).detach().double() for name in names}


def _cosine(update: Tensor, difference: Tensor) -> float:
    projected = difference @ difference.T @ update / difference.norm()
    return float((projected * update).sum() / (projected.norm() * update.norm()))


def _add(model: Any, name: str, update: Tensor) -> None:
    """Change one parameter, and not the one that it is tied to."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, leaf, torch.nn.Parameter(getattr(owner, leaf).detach() + update))


def logits_of(load: Any, model: Path, adapter: Path) -> Tensor:
    """What PEFT makes of an adapter, float64."""
    from peft import PeftModel

    with torch.no_grad():
        logits: Tensor = PeftModel.from_pretrained(load(model), adapter).double()(IDS).logits
        return logits
