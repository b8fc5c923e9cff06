"""A model whose layers carry two weighed updates, so that a loss has a gradient for each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.module_names import listed, natural_order
from safemerge.errors import MismatchError, UnsupportedAdapterError

Weights = dict[str, tuple[float, float]]
"""Module path to (α, β)."""


@contextmanager
def weighed_layers(
    model: Any, task: Mapping[str, LoraPair], safety: Mapping[str, LoraPair], start: Weights
) -> Iterator[Tensor]:
    """Add weighed updates to the outputs of a model's layers, within the block.

    A layer W·x becomes W·x + α·s·B·(A·x) of the task adapter + β·s·B·(A·x) of the safety adapter; the factors
    are fp32 and frozen.

    Yields:
        The weights, (layers, 2), fp32, a leaf that takes gradients; layers in natural order.

    Raises:
        UnsupportedAdapterError: layers are no linear modules of the model; they are named.
        MismatchError: layers differ in shape from the model's; they are named.
    """
    modules = sorted(task, key=natural_order)
    layers = _linear_layers(model, {module: task[module].shape for module in modules})
    weights = torch.tensor([start[module] for module in modules], device=model.device, requires_grad=True)
    handles = []
    try:
        for row, module in enumerate(modules):
            pairs = [task[module]] + ([safety[module]] if module in safety else [])
            hook = partial(_add_update, _Updates.of(pairs, layers[module].weight.device), weights, row)
            handles.append(layers[module].register_forward_hook(hook))
        yield weights
    finally:
        for handle in handles:
            handle.remove()


class _Updates(NamedTuple):
    """The updates of one layer, their factors side by side."""

    lora_a: Tensor
    """(r_task + r_safety, d_in), fp32."""
    lora_b: Tensor
    """(d_out, r_task + r_safety), fp32, with the scales folded in."""
    ranks: Tensor
    """Rank of each update."""

    @classmethod
    def of(cls, pairs: Sequence[LoraPair], device: torch.device) -> _Updates:
        a = torch.cat([pair.lora_a.float() for pair in pairs])
        b = torch.cat([pair.lora_b.float() * pair.scale for pair in pairs], dim=1)
        return cls(a.to(device), b.to(device), torch.tensor([pair.rank for pair in pairs], device=device))


def _add_update(
    updates: _Updates, weights: Tensor, row: int, _module: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """A forward hook: the layer's output with its weighed updates."""
    each = weights[row, : len(updates.ranks)].to(updates.lora_a.device)
    inner = inputs[0].float() @ updates.lora_a.T * each.repeat_interleave(updates.ranks)
    return output + (inner @ updates.lora_b.T).to(output.dtype)


def _linear_layers(model: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The modules of the model that layers name."""
    there = dict(model.named_modules())
    odd = [m for m in shapes if not (isinstance(there.get(m), torch.nn.Linear) or _is_conv1d(there.get(m)))]
    if odd:
        raise UnsupportedAdapterError(
            "expected layers that are linear modules of the model, since coefficients are learned at their "
            f"outputs (not embeddings, nor experts held in one tensor), got {listed(odd)}"
        )
    wrong = []
    for module, shape in shapes.items():
        weight = there[module].weight
        got = tuple(weight.T.shape if _is_conv1d(there[module]) else weight.shape)
        if got != shape:
            wrong.append(f"{module} (adapter {shape}, model {got})")
    if wrong:
        raise MismatchError(f"expected adapters of this model, got different shapes: {', '.join(wrong)}")
    return {module: there[module] for module in shapes}


def _is_conv1d(module: Any) -> bool:
    """Whether it is the linear layer of GPT-2 and its like, whose weight is (d_in, d_out)."""
    return type(module).__name__ == "Conv1D"
