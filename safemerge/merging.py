"""The merge on files: two adapter folders and two checkpoints in, a merged adapter folder and its report out.

Scoring reads the checkpoints and is the costly half; any number of merges can be
written from one scoring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import safemerge
from safemerge.config.models import MergeConfig
from safemerge.core import methods
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergeResult, alignment_terms, check_shapes, merge_scored
from safemerge.core.options import MergeOptions, OnUndefined
from safemerge.core.scoring import LayerScore, Progress, Terms, score_many
from safemerge.core.similarity import NO_ALIGNMENT
from safemerge.errors import ConfigError, MismatchError
from safemerge.records import LayerReport, MergeReport
from safemerge.storage.adapters import (
    Adapter,
    adapter_digest,
    check_same_base,
    check_same_names,
    copy_adapter,
    read_adapter,
    saved_warnings,
    write_adapter,
)
from safemerge.storage.alignment_reader import AlignmentReader
from safemerge.storage.atomic import atomic_folder, check_absent
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.hub import resolve

REPORT_FILE = "safemerge_report.json"
PLOT_FILE = "safemerge_layers.html"

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


def merge_adapters(
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    output: str | Path,
    method: str = methods.DEFAULT,
    threshold: float | None = None,
    quantile: float | None = None,
    count: int | None = None,
    modules: Sequence[str] | None = None,
    task_weight: float | None = None,
    safety_weight: float | None = None,
    on_undefined: OnUndefined = "keep",
    density: float | None = None,
    components: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    max_error: float | None = None,
    hash_files: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> MergeReport:
    """Merge two adapter folders into a new one.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where the method
            needs none.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        output: Folder to make; it must not exist.
        method: The options down to ``max_error`` are those of
            :class:`safemerge.core.options.MergeOptions`.
        threshold: τ; 0.35 where nothing else chooses.
        quantile: Merge this share of the layers instead.
        count: Merge so many layers instead.
        modules: Merge these layers instead: paths or patterns.
        task_weight: α; 0.8 where no weight is given.
        safety_weight: β; 1 − α where not given.
        on_undefined: What to do with layers whose cosine is undefined.
        density: Share of entries kept by methods that prune.
        components: Largest number of singular directions of V, for methods that decompose it.
        seed: Seed of random draws.
        rank: Rank to store every update at.
        max_error: Largest relative error to store an update with.
        hash_files: Let the models' digests cover whole files instead of header and tensors read.
        device: Where layers are scored: cpu, cuda, cuda:<number>, mps, or auto for the best there is.
        progress: Called after each scored layer.

    Returns:
        The report, which is also in the folder.

    Raises:
        SafemergeError: options, files or tensors are wrong; the output is then not made.
    """
    output = Path(output)
    check_absent(output)
    options = MergeOptions(
        method=method,
        threshold=threshold,
        quantile=quantile,
        count=count,
        modules=None if modules is None else tuple(modules),
        task_weight=task_weight,
        safety_weight=safety_weight,
        on_undefined=on_undefined,
        density=density,
        components=components,
        seed=seed,
        rank=rank,
        max_error=max_error,
    )
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        aligned_model,
        unaligned_model,
        merges=[options],
        hash_files=hash_files,
        device=device,
        progress=progress,
    )
    return write_merge(scored, options, output)


def merge_arms(
    task_adapter: str | Path,
    safety_adapter: str | Path,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    output: Path,
    arms: Mapping[str, MergeConfig],
    hash_files: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, MergeReport]:
    """Score once and write several merges, each into a sub-folder of ``output`` named as its arm.

    All sub-folders appear together, or none does.

    Raises:
        SafemergeError: options, files or tensors are wrong.
    """
    check_absent(output)
    if wrong := sorted(arm for arm in arms if not arm or Path(arm).name != arm or arm.startswith(".")):
        raise ConfigError(f"arms: expected plain names, got {', '.join(map(repr, wrong))}")
    options = {arm: merge_options(config) for arm, config in arms.items()}
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        aligned_model,
        unaligned_model,
        merges=list(options.values()),
        hash_files=hash_files,
        device=device,
        progress=progress,
    )
    with atomic_folder(output) as folder:
        return {arm: write_merge(scored, options[arm], folder / arm) for arm in arms}


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

    Checks go from cheap to dear: configs, then headers, then shapes, and only then weights. Without
    ``digests`` the models' tensors are not hashed, which takes longer than all else: for scores alone,
    since a merge's report wants them.

    Raises:
        SafemergeError: files or tensors are wrong.
    """
    resolve_device(device)
    task = read_adapter(resolve(task_adapter, "adapter"))
    safety = None if safety_adapter is None else read_adapter(resolve(safety_adapter, "adapter"))
    for merge in merges:
        if safety is None and methods.get(merge.method).needs_safety:
            raise ConfigError(f"method {merge.method}: expected a safety adapter, got none")
    warnings = check_same_base(task.config, safety.config if safety else {}, aligned_model)
    warnings += saved_warnings(task, safety)
    check_same_names(task.pairs, safety.pairs if safety else {})
    check_shapes(task.pairs, safety.pairs if safety else None)
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
    adapters = {"task_adapter": task, "safety_adapter": safety}
    made = {role: adapter_digest(adapter.folder) for role, adapter in adapters.items() if adapter}
    return ScoredAdapters(task, safety, scores, made | model_digests, warnings)


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


def _refuse_equal_models(scores: Mapping[str, LayerScore], merges: Sequence[MergeOptions]) -> None:
    """Refuse models between which no layer differs: no layer would be merged, without a word."""
    by_cosine = [
        merge
        for merge in merges
        if methods.get(merge.method).chooses and merge.modules is None and merge.on_undefined != "merge"
    ]
    if by_cosine and all(score.undefined == NO_ALIGNMENT for score in scores.values()):
        raise MismatchError(
            "expected an aligned model and the same before it was aligned, got two that are equal in all "
            f"{len(scores)} layers of the adapter: no layer would be merged"
        )


def write_merge(scored: ScoredAdapters, options: MergeOptions, output: Path) -> MergeReport:
    """Merge scored adapters and write adapter, report and plot into a new folder.

    Raises:
        SafemergeError: the adapters cannot be merged that way, or the output exists.
    """
    from safemerge.plots import layer_plot_html

    safety = None if scored.safety is None else scored.safety.pairs
    result = merge_scored(scored.task.pairs, safety, scored.scores, options)
    report = merge_report(result, options, scored.digests, scored.warnings)
    with atomic_folder(output) as folder:
        if result.unchanged:
            copy_adapter(scored.task.folder, folder)
        else:
            write_adapter(folder, result.layers, scored.task.config, scored.task.saved)
        (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (folder / PLOT_FILE).write_text(layer_plot_html(report), encoding="utf-8")
    return report


def merge_report(
    result: MergeResult, options: MergeOptions, digests: dict[str, str], warnings: tuple[str, ...]
) -> MergeReport:
    """The record of a merge."""
    return MergeReport(
        safemerge_version=safemerge.__version__,
        method=options.method,
        threshold=result.threshold,
        quantile=None if result.threshold is None else options.quantile,
        weights=options.weights,
        options=option_settings(options),
        rank=max((pair.rank for pair in result.layers.values()), default=None),
        digests=digests,
        layers=tuple(LayerReport(**decision._asdict()) for decision in result.decisions),
        safety_only_layers=result.safety_only,
        warnings=warnings,
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


def merge_options(config: MergeConfig) -> MergeOptions:
    """The same choices, checked, for the core."""
    return MergeOptions(
        method=config.method,
        threshold=config.threshold,
        quantile=config.quantile,
        count=config.count,
        modules=config.modules,
        task_weight=config.task_weight,
        safety_weight=config.safety_weight,
        on_undefined=config.on_undefined.value,
        density=config.density,
        components=config.components,
        seed=config.seed,
        rank=config.rank,
        max_error=config.max_error,
    )


def option_settings(options: MergeOptions) -> dict[str, Any]:
    """Options as plain data, with the weights that are meant where none were given."""
    task, safety = options.weights
    settings = dataclasses.asdict(options) | {"task_weight": task, "safety_weight": safety}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
