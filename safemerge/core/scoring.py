"""Scores of an adapter's layers: how far each left the directions of safety alignment.

The costly half of a merge, since it reads the weights. Any number of adapters is scored in one pass, and
any number of merges made from the scores. Layers are keyed by full module path and paired by key. Inputs
are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from safemerge.core.alignment import alignment_difference, check_weights, difference_blocks
from safemerge.core.lora import LoraPair, column_factor
from safemerge.core.module_names import natural_order
from safemerge.core.similarity import projected_cosines, whole
from safemerge.errors import MismatchError, NonFiniteError

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
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> list[dict[str, LayerScore]]:
    """Score every layer of several adapters of one model, asking for each layer's weights once.

    Args:
        tasks: Adapters, each module path to LoRA pair, on the CPU.
        alignment: Module path to (aligned, unaligned) weight.
        terms: What methods need of V, made for every layer and adapter.
        progress: Called after each layer.
        device: Where V is multiplied. Norms are taken in float64 on the CPU wherever that is, so
            cosines agree to within 1e-5.
        workers: Layers in work at once, each on a thread of its own, so that one may wait for its weights
            while another computes; ``alignment`` and ``terms`` are then called from these threads. It
            does best where torch itself uses a single thread.

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
    score = partial(_score_module, tasks, alignment, terms or {}, device)
    scores: list[dict[str, LayerScore]] = [{} for _ in tasks]
    with closing(_each(score, modules, workers)) as scored:
        for done, (module, found) in enumerate(scored, start=1):
            for index, layer in found.items():
                scores[index][module] = layer
            if progress is not None:
                progress(done, len(modules), module)
    return scores


Found = dict[int, LayerScore]
"""Scores of one layer by the adapter's position."""


def _each(
    score: Callable[[str], Found], modules: Sequence[str], workers: int
) -> Generator[tuple[str, Found], None, None]:
    """Modules and their scores, in order, whichever is ready first; closing it lets the rest be."""
    if workers == 1:
        yield from zip(modules, map(score, modules), strict=True)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="score") as pool:
        try:
            yield from zip(modules, pool.map(score, modules), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _score_module(
    tasks: Sequence[Mapping[str, LoraPair]],
    alignment: Callable[[str], WeightPair],
    terms: Terms,
    device: torch.device | str,
    module: str,
) -> Found:
    pairs = {index: task[module] for index, task in enumerate(tasks) if module in task}
    aligned, unaligned = alignment(module)
    try:
        return _score_pairs(pairs, aligned, unaligned, terms, torch.device(device))
    except MismatchError as error:
        raise MismatchError(f"{module}: {error}") from error
    except NonFiniteError as error:
        named = {"the aligned model's weight": [aligned], "the unaligned model's weight": [unaligned]}
        named["the task adapter's lora_A"] = [pair.lora_a for pair in pairs.values()]
        named["the task adapter's lora_B"] = [pair.lora_b for pair in pairs.values()]
        where = [
            name
            for name, tensors in named.items()
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
        ]
        raise NonFiniteError(f"{module}: {error} in {' and '.join(where) or 'products of them'}") from error


def _score_pairs(
    pairs: Mapping[int, LoraPair], aligned: Tensor, unaligned: Tensor, terms: Terms, device: torch.device
) -> Found:
    check_weights(aligned, unaligned)
    for pair in pairs.values():
        if pair.shape != aligned.shape:
            raise MismatchError(
                f"alignment: expected shape {pair.shape} as of the update, got {tuple(aligned.shape)}"
            )
    factors = [column_factor(pair.lora_a, pair.lora_b) for pair in pairs.values()]
    made: dict[int, dict[str, LoraPair]] = {index: {} for index in pairs}
    if terms or device.type != "cpu":
        difference = alignment_difference(aligned, unaligned, device)
        blocks = whole(difference)
        made = {index: _make_terms(terms, pair, difference) for index, pair in pairs.items()}
    else:
        blocks = partial(difference_blocks, aligned, unaligned)
    cosines = projected_cosines(factors, blocks, aligned.shape[1], device)
    norms = [
        abs(pair.scale) * float(torch.linalg.vector_norm(factor))
        for pair, factor in zip(pairs.values(), factors, strict=True)
    ]
    return {
        index: LayerScore(cosine.value, cosine.undefined, norm, made[index])
        for index, cosine, norm in zip(pairs, cosines, norms, strict=True)
    }


def _make_terms(terms: Terms, pair: LoraPair, difference: Tensor) -> dict[str, LoraPair]:
    device = terms_device(difference.device)
    there = LoraPair(pair.lora_a.to(device), pair.lora_b.to(device), pair.scale)
    made = {name: make(there, difference.to(device)) for name, make in terms.items()}
    return {name: LoraPair(term.lora_a.cpu(), term.lora_b.cpu(), term.scale) for name, term in made.items()}


def terms_device(device: torch.device) -> torch.device:
    """Where terms are made: beside V, but not on MPS, since methods may use float64, which it lacks."""
    return torch.device("cpu") if device.type == "mps" else device
