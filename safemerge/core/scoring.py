"""Scores of an adapter's layers: how far each left the directions of safety alignment.

The costly half of a merge, since it reads the weights. Any number of adapters is scored in one pass, and
any number of merges made from the scores. Layers are keyed by full module path and paired by key. Inputs
are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.core.alignment import alignment_difference
from safemerge.core.lora import LoraPair
from safemerge.core.similarity import projected_cosine
from safemerge.errors import DegenerateLayerError, MismatchError, NonFiniteError

WeightPair = tuple[Tensor, Tensor]
"""(aligned, unaligned) weight of one module, each (d_out, d_in)."""
Alignment = Mapping[str, WeightPair] | Callable[[str], WeightPair]
"""Gives the weights of a module; a callable lets them be read one module at a time."""
Progress = Callable[[int, int, str], None]
"""Called after each scored layer with layers done, layers in all, module path."""
Terms = Mapping[str, Callable[[LoraPair, Tensor], LoraPair]]
"""Names of methods to what they make of ΔW_task and V, (d_out, d_in), fp32, while V is at hand."""


class LayerScore(NamedTuple):
    """What is known of a layer before anything is chosen."""

    cosine: float | None
    """ρ in [0, 1]; None where it is undefined."""
    undefined: str | None
    """Why the cosine is undefined; None where it is not."""
    task_norm: float
    """Frobenius norm of ΔW_task."""
    terms: Mapping[str, LoraPair] = {}
    """Names of methods to their term of this layer, as asked for."""


def score_layers(
    task: Mapping[str, LoraPair],
    alignment: Alignment,
    *,
    terms: Terms | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerScore]:
    """Score every layer of one adapter; see :func:`score_many`."""
    return score_many([task], alignment, terms=terms, progress=progress)[0]


def score_many(
    tasks: Sequence[Mapping[str, LoraPair]],
    alignment: Alignment,
    *,
    terms: Terms | None = None,
    progress: Progress | None = None,
) -> list[dict[str, LayerScore]]:
    """Score every layer of several adapters of one model, asking for each layer's weights once.

    Args:
        tasks: Adapters, each module path to LoRA pair.
        alignment: Module path to (aligned, unaligned) weight.
        terms: What methods need of V, made for every layer and adapter.
        progress: Called after each layer.

    Returns:
        Scores of each adapter, in natural order of the module paths.

    Raises:
        MismatchError: a layer's shapes do not fit, or ``alignment`` lacks it; it is named.
        NonFiniteError: a weight holds NaN or infinity; it is named.
    """
    modules = sorted(set().union(*tasks), key=natural_order)
    if isinstance(alignment, Mapping):
        if missing := [module for module in modules if module not in alignment]:
            raise MismatchError(f"expected weights of every layer, got none for {', '.join(missing)}")
        alignment = alignment.__getitem__
    scores: list[dict[str, LayerScore]] = [{} for _ in tasks]
    for done, module in enumerate(modules, start=1):
        weights = alignment(module)
        for task, found in zip(tasks, scores, strict=True):
            if module in task:
                found[module] = _score_layer(module, task[module], *weights, terms or {})
        if progress is not None:
            progress(done, len(modules), module)
    return scores


def natural_order(module: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", module)]


def _score_layer(module: str, task: LoraPair, aligned: Tensor, unaligned: Tensor, terms: Terms) -> LayerScore:
    task_norm = task.norm()
    try:
        difference = alignment_difference(aligned, unaligned)
        made = {name: make(task, difference) for name, make in terms.items()}
        cosine = projected_cosine(task.lora_a, task.lora_b, difference)
    except DegenerateLayerError as error:
        return LayerScore(None, str(error), task_norm, made)
    except MismatchError as error:
        raise MismatchError(f"{module}: {error}") from error
    except NonFiniteError as error:
        named = {
            "the task adapter's lora_A": task.lora_a,
            "the task adapter's lora_B": task.lora_b,
            "the aligned model's weight": aligned,
            "the unaligned model's weight": unaligned,
        }
        where = [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]
        raise NonFiniteError(f"{module}: {error} in {' and '.join(where) or 'products of them'}") from error
    return LayerScore(cosine, None, task_norm, made)
