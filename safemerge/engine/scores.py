"""Scores of adapters on disk against two checkpoints: the costly half of every merge.

Checks go from cheap to dear: configs, then headers, then shapes, and only then weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safemerge.core import methods
from safemerge.core.lora import LoraPair
from safemerge.core.merge import alignment_terms, check_layers_fit
from safemerge.core.options import MergeOptions
from safemerge.core.scoring import LayerScore, Progress, Terms, score_many
from safemerge.core.similarity import NO_ALIGNMENT
from safemerge.errors import ConfigError, MismatchError
from safemerge.storage.adapters import (
    Adapter,
    adapter_digest,
    check_same_names,
    read_adapter,
    saved_warnings,
)
from safemerge.storage.alignment_reader import AlignmentReader
from safemerge.storage.base_models import base_of, check_same_base
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.hub import resolve

_MOST_WORKERS = 4
"""Layers scored at once: bounds the weights that are mapped at a time."""


@dataclass(frozen=True)
class ScoredAdapters:
    """Two adapters whose layers have been scored against an alignment."""

    task: Adapter
    safety: Adapter | None
    scores: dict[str, LayerScore]
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one) and, where they were asked for,
    aligned_model and unaligned_model."""
    warnings: tuple[str, ...]


def score_adapters(
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    merges: Sequence[MergeOptions] = (),
    digests: bool = True,
    hash_files: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> ScoredAdapters:
    """Read both adapters and score every layer of the task adapter, for the merges that are to follow.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where no merge needs one.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        merges: What will be made of the scores, which must hold what these need of V; none for the scores
            alone.
        digests: Whether to hash what is read of the models, which takes longer than all else; a merge's
            report wants it.
        hash_files: Hash the models' whole files instead.
        device: Where layers are scored; see :func:`resolve_device`.
        progress: Called after each scored layer.

    Raises:
        SafemergeError: files or tensors are wrong.
    """
    resolve_device(device)
    task = read_adapter(resolve(task_adapter, "adapter"))
    safety = None if safety_adapter is None else read_adapter(resolve(safety_adapter, "adapter"))
    for merge in merges:
        if safety is None and methods.get(merge.method).needs_safety:
            raise ConfigError(f"method {merge.method}: expected a safety adapter, got none")
    adapters = {"task adapter": task} | ({"safety adapter": safety} if safety else {})
    warnings = check_same_base({role: adapter.config for role, adapter in adapters.items()}, aligned_model)
    warnings += saved_warnings(task, safety)
    check_same_names(task.pairs, safety.pairs if safety else {})
    check_layers_fit(task.pairs, safety.pairs if safety else None)
    hashed = {role.replace(" ", "_"): adapter_digest(adapter.folder) for role, adapter in adapters.items()}
    _check_coefficients(merges, hashed)
    if len(set(hashed.values())) < len(hashed):
        warnings += ("the task and the safety adapter are one and the same: nothing is repaired",)
    if any(
        _names(adapter.config, unaligned_model) and not _names(adapter.config, aligned_model)
        for adapter in adapters.values()
    ):
        warnings += ("adapters name the unaligned model as their base: are the two models swapped?",)
    (scores,), model_digests = score_pairs(
        [task.pairs],
        aligned_model,
        unaligned_model,
        terms=alignment_terms(merges),
        digests=digests,
        hash_files=hash_files,
        device=device,
        progress=progress,
    )
    _refuse_equal_models(scores, merges)
    return ScoredAdapters(task, safety, scores, hashed | model_digests, warnings)


def score_pairs(
    tasks: Sequence[Mapping[str, LoraPair]],
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    terms: Terms | None = None,
    digests: bool = True,
    hash_files: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[list[dict[str, LayerScore]], dict[str, str]]:
    """Score the LoRA pairs of any number of adapters, wherever they come from, against two checkpoints.

    Args:
        tasks: Adapters, each module path to LoRA pair, on the CPU.
        aligned_model: Folder or hub id.
        unaligned_model: Folder or hub id.
        terms: What methods need of V.
        digests: Whether to hash what is read of the models.
        hash_files: Hash the models' whole files instead.
        device: Where layers are scored; see :func:`resolve_device`.
        progress: Called after each scored layer.

    Returns:
        The scores of each adapter by module path, and the digests of ``aligned_model`` and
        ``unaligned_model``, empty where not asked for.

    Raises:
        SafemergeError: files or tensors are wrong.
    """
    place = resolve_device(device)
    aligned, unaligned = (Checkpoint.open(resolve(source)) for source in (aligned_model, unaligned_model))
    weights_of = AlignmentReader(aligned, unaligned, tasks, digests=digests and not hash_files)
    with _single_threaded_torch() as threads:
        workers = min(threads, _MOST_WORKERS)
        scores = score_many(tasks, weights_of, terms=terms, progress=progress, device=place, workers=workers)
    if not (digests or hash_files):
        return scores, {}
    models = (aligned.files_digest(), unaligned.files_digest()) if hash_files else weights_of.read_digests()
    return scores, dict(zip(("aligned_model", "unaligned_model"), models, strict=True))


def _names(config: Mapping[str, Any], model: str | Path) -> bool:
    """Whether an adapter names just this model as its base."""
    base = base_of(config)
    return base is not None and Path(base).name == Path(str(model).partition("@")[0]).name


def _check_coefficients(merges: Sequence[MergeOptions], digests: Mapping[str, str]) -> None:
    """Refuse coefficients that were learned for other adapters."""
    for coefficients in (merge.coefficients for merge in merges if merge.coefficients is not None):
        for role in ("task_adapter", "safety_adapter"):
            expected = getattr(coefficients, role)
            if expected is not None and expected != digests[role]:
                raise MismatchError(
                    f"coefficients: expected those of this {role.replace('_', ' ')} (sha256 "
                    f"{digests[role][:12]}), got some learned for another ({expected[:12]})"
                )


def needs_alignment(merge: MergeOptions) -> bool:
    """Whether a merge would touch no layer of two models that are equal."""
    return methods.get(merge.method).chooses and merge.modules is None and merge.on_undefined != "merge"


def _refuse_equal_models(scores: Mapping[str, LayerScore], merges: Sequence[MergeOptions]) -> None:
    """Refuse models between which no layer differs: no layer would be merged, without a word."""
    if any(map(needs_alignment, merges)) and all(
        score.undefined == NO_ALIGNMENT for score in scores.values()
    ):
        raise MismatchError(
            "expected an aligned model and the same before it was aligned, got two that are equal in all "
            f"{len(scores)} layers of the adapter: no layer would be merged"
        )


def resolve_device(name: str) -> torch.device:
    """The device of that name; for ``auto`` CUDA where there is one, else MPS, else the CPU.

    Raises:
        ConfigError: it is none of cpu, cuda and mps, or this machine has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in there:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:<number> or mps, got {name!r}")
    if not there[device.type] or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        found = ", ".join(kind for kind, available in there.items() if available)
        raise ConfigError(f"device: expected one that this machine has ({found}), got {name!r}")
    return device


@contextmanager
def _single_threaded_torch() -> Iterator[int]:
    """Let torch compute on one thread, and say how many it had: so many layers can be scored at once.

    Scoring is many short operations. Threads that share one of them wait for each other after each, which
    on a busy machine made it ten times slower; threads with a layer each never wait.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
