"""What is in adapters, and whether they fit each other and the models; no weight is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safemerge
from safemerge.core.lora import LoraPair
from safemerge.core.module_names import grouped, natural_order
from safemerge.core.options import SERVED_RANK
from safemerge.errors import SafemergeError
from safemerge.reports.adapters import AdapterSummary, InspectionReport
from safemerge.storage.adapter_config import CONFIG_FILE, TENSORS_FILE
from safemerge.storage.adapters import Adapter, adapter_digest, read_adapter
from safemerge.storage.base_models import base_model_doubt, base_of, differing_ids
from safemerge.storage.checkpoints import Checkpoint, check_same_architecture
from safemerge.storage.hub import resolve


class _Read(NamedTuple):
    """An adapter as far as it could be read."""

    name: str
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]


def inspect_adapters(
    adapters: Sequence[str | Path],
    *,
    aligned_model: str | Path | None = None,
    unaligned_model: str | Path | None = None,
) -> InspectionReport:
    """Look into adapters; what is wrong with them is in the report, not an exception.

    Args:
        adapters: Folders or hub ids.
        aligned_model: Folder or hub id of the model that they should belong to.
        unaligned_model: Folder or hub id of its counterpart before alignment.
    """
    problems: list[str] = []
    notes: list[str] = []
    summaries, readable = [], []
    for source in adapters:
        summary, read = _summary(str(source), problems)
        summaries.append(summary)
        if read is not None:
            readable.append(read)
    problems += [*_base_problems(summaries, aligned_model), *_shape_problems(readable)]
    notes += [*_lacking(readable), *_served(readable)]
    models = {"aligned": aligned_model, "unaligned": unaligned_model}
    opened = {role: _opened(source, problems) for role, source in models.items() if source is not None}
    checkpoints = {role: checkpoint for role, checkpoint in opened.items() if checkpoint is not None}
    for role, checkpoint in checkpoints.items():
        for read in readable:
            problems += _fit_problems(role, checkpoint, read)
    if len(checkpoints) == 2:
        problems += _pair_problems(checkpoints["aligned"], checkpoints["unaligned"])
    if aligned_model is not None:
        doubts = (base_model_doubt(f"adapter {read.name}", read.config, aligned_model) for read in readable)
        notes += [doubt for doubt in doubts if doubt]
    return InspectionReport(
        safemerge_version=safemerge.__version__,
        adapters=tuple(summaries),
        aligned_model=None if aligned_model is None else str(aligned_model),
        unaligned_model=None if unaligned_model is None else str(unaligned_model),
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _summary(name: str, problems: list[str]) -> tuple[AdapterSummary, _Read | None]:
    try:
        folder = resolve(name, "adapter")
    except SafemergeError as error:
        problems.append(str(error))
        return AdapterSummary(name=name, readable=False, base_model=None), None
    try:
        adapter = read_adapter(folder)
    except SafemergeError as error:
        problems.append(str(error))
        return _of_config(name, folder), None
    return _of_adapter(name, adapter), _Read(name, adapter.config, adapter.pairs)


def _of_adapter(name: str, adapter: Adapter) -> AdapterSummary:
    config, pairs = adapter.config, adapter.pairs
    rslora = bool(config.get("use_rslora"))
    alphas = [pair.scale * (math.sqrt(pair.rank) if rslora else pair.rank) for pair in pairs.values()]
    factors = [factor for pair in pairs.values() for factor in (pair.lora_a, pair.lora_b)]
    return AdapterSummary(
        name=name,
        readable=True,
        base_model=base_of(config),
        ranks=dict(sorted(Counter(pair.rank for pair in pairs.values()).items())),
        alphas=_counted(alphas),
        scales=_counted(pair.scale for pair in pairs.values()),
        rslora=rslora,
        targets=grouped(sorted(pairs, key=natural_order)),
        modules=tuple(sorted(pairs, key=natural_order)),
        parameters=sum(factor.numel() for factor in factors),
        size_bytes=(adapter.folder / TENSORS_FILE).stat().st_size,
        dtype=", ".join(sorted({str(factor.dtype).removeprefix("torch.") for factor in factors})),
        norm=math.sqrt(sum(pair.norm() ** 2 for pair in pairs.values())),
        digest=adapter_digest(adapter.folder),
    )


def _of_config(name: str, folder: Path) -> AdapterSummary:
    """What the config alone says of an adapter that cannot be read as one."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    targets = config.get("target_modules")
    file = folder / TENSORS_FILE
    return AdapterSummary(
        name=name,
        readable=False,
        base_model=base_of(config),
        rslora=bool(config.get("use_rslora")),
        targets=", ".join(map(str, targets)) if isinstance(targets, list) else str(targets or ""),
        size_bytes=file.stat().st_size if file.is_file() else None,
    )


def _counted(figures: Iterable[float]) -> dict[str, int]:
    """Figures as text to how often they occur, in rising order."""
    return {f"{figure:g}": count for figure, count in sorted(Counter(figures).items())}


def _base_problems(summaries: Sequence[AdapterSummary], aligned_model: str | Path | None) -> list[str]:
    bases = {f"adapter {summary.name}": summary.base_model for summary in summaries}
    got = differing_ids(bases, aligned_model)
    return [f"expected adapters of one base model, got {got}"] if got else []


def _shape_problems(adapters: Sequence[_Read]) -> list[str]:
    differing: dict[str, dict[str, tuple[int, int]]] = {}
    for module in sorted({module for read in adapters for module in read.pairs}, key=natural_order):
        shapes = {read.name: read.pairs[module].shape for read in adapters if module in read.pairs}
        if len(set(shapes.values())) > 1:
            differing[module] = shapes
    if not differing:
        return []
    first, shapes = next(iter(differing.items()))
    listed = ", ".join(f"{shape} in {name}" for name, shape in shapes.items())
    where = f"{len(differing)} modules ({grouped(differing)})"
    return [f"adapters differ in shape in {where}: {first} is {listed}"]


def _lacking(adapters: Sequence[_Read]) -> list[str]:
    everywhere = {module for read in adapters for module in read.pairs}
    missing = {read.name: everywhere - read.pairs.keys() for read in adapters}
    return [
        f"{name} lacks {len(modules)} of {len(everywhere)} modules: "
        f"{grouped(sorted(modules, key=natural_order))}"
        for name, modules in missing.items()
        if modules
    ]


def _served(adapters: Sequence[_Read]) -> list[str]:
    ranks = [max(pair.rank for pair in read.pairs.values()) for read in adapters]
    if len(ranks) != 2 or sum(ranks) <= SERVED_RANK:
        return []
    return [
        f"an exact merge of the two has rank {sum(ranks)}; vLLM serves up to {SERVED_RANK} unless told "
        f"otherwise (safemerge merge --rank {SERVED_RANK}, or vLLM's --max-lora-rank)"
    ]


def _opened(source: str | Path, problems: list[str]) -> Checkpoint | None:
    try:
        return Checkpoint.open(resolve(source))
    except SafemergeError as error:
        problems.append(str(error))
        return None


def _fit_problems(role: str, checkpoint: Checkpoint, read: _Read) -> list[str]:
    try:
        places = checkpoint.locate(read.pairs)
        shapes = {module: checkpoint.shape(place) for module, place in places.items()}
    except SafemergeError as error:
        return [f"{read.name} does not fit the {role} model: {error}"]
    wrong = [module for module in read.pairs if shapes[module] != read.pairs[module].shape]
    if not wrong:
        return []
    first = min(wrong, key=natural_order)
    return [
        f"{read.name} does not fit the {role} model in {len(wrong)} modules "
        f"({grouped(sorted(wrong, key=natural_order))}): {first} is {shapes[first]} there, "
        f"{read.pairs[first].shape} in the adapter"
    ]


def _pair_problems(aligned: Checkpoint, unaligned: Checkpoint) -> list[str]:
    if aligned.folder.resolve() == unaligned.folder.resolve():
        return [f"aligned and unaligned model are one folder, {aligned.folder}: no layer has a cosine"]
    try:
        check_same_architecture(aligned, unaligned)
    except SafemergeError as error:
        return [str(error)]
    return []
