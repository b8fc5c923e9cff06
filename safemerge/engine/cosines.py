"""The projected cosines of any number of adapters, from one pass over the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import safemerge
from safemerge.core.options import DEFAULT_THRESHOLD
from safemerge.core.scoring import LayerScore, Progress
from safemerge.core.select import select_by_quantile, select_by_threshold
from safemerge.engine.scores import score_pairs
from safemerge.errors import ConfigError
from safemerge.reports.adapters import AdapterCosines, Choice, CosineReport, LayerCosine
from safemerge.storage.adapters import adapter_digest, read_adapter
from safemerge.storage.base_models import base_model_doubt
from safemerge.storage.hub import resolve

THRESHOLDS = (DEFAULT_THRESHOLD, 0.5, 0.8)
"""Thresholds as papers have published them; the first is the default."""
QUANTILES = (0.25, 0.5, 0.75)
NEARLY_ALL = 0.95
"""A threshold that chooses more than this share of the layers, or none, tells them hardly apart."""


def score_cosines(
    task_adapters: Sequence[str | Path],
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    digests: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> CosineReport:
    """Score adapters of one model.

    Args:
        task_adapters: Folders or hub ids.
        aligned_model: Folder or hub id of the model that they were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        digests: Whether to hash what is read of the models, which takes longer than all else.
        device: Where layers are scored: cpu, cuda, cuda:<number>, mps, or auto for the best there is.
        progress: Called after each scored layer.

    Raises:
        SafemergeError: files or tensors are wrong.
    """
    if not task_adapters:
        raise ConfigError("expected at least one task adapter, got none")
    adapters = [read_adapter(resolve(source, "adapter")) for source in task_adapters]
    scores, hashed = score_pairs(
        [adapter.pairs for adapter in adapters],
        aligned_model,
        unaligned_model,
        digests=digests,
        device=device,
        progress=progress,
    )
    names = [str(source) for source in task_adapters]
    scored = tuple(
        _adapter_cosines(name, adapter_digest(adapter.folder), found)
        for name, adapter, found in zip(names, adapters, scores, strict=True)
    )
    doubts = (
        base_model_doubt(name, adapter.config, aligned_model)
        for name, adapter in zip(names, adapters, strict=True)
    )
    said = [doubt for doubt in doubts if doubt]
    said += [warning for adapter in scored if (warning := default_threshold_warning(adapter))]
    return CosineReport(
        safemerge_version=safemerge.__version__, adapters=scored, digests=hashed, warnings=tuple(said)
    )


def default_threshold_warning(adapter: AdapterCosines) -> str | None:
    """What to say where the default threshold hardly tells the layers of an adapter apart."""
    cosines = adapter.cosines
    if not cosines:
        return f"{adapter.name}: no layer has a cosine: {adapter.layers[0].undefined}"
    below = sum(cosine < DEFAULT_THRESHOLD for cosine in cosines)
    if 0 < below <= NEARLY_ALL * len(cosines):
        return None
    return (
        f"{adapter.name}: the default threshold, {DEFAULT_THRESHOLD}, chooses "
        f"{'no layer' if below == 0 else f'{below} of {len(cosines)} layers'}: cosines lie between "
        f"{cosines[0]:.3g} and {cosines[-1]:.3g} here, as they differ from model to model. "
        "Choose by --quantile or --count"
    )


def _adapter_cosines(name: str, digest: str, scores: Mapping[str, LayerScore]) -> AdapterCosines:
    layers = tuple(
        LayerCosine(module=module, cosine=score.cosine, undefined=score.undefined, task_norm=score.task_norm)
        for module, score in scores.items()
    )
    cosines = {layer.module: layer.cosine for layer in layers if layer.cosine is not None}
    fixed = [
        Choice(threshold=threshold, layers=len(select_by_threshold(cosines, threshold).chosen))
        for threshold in THRESHOLDS
    ]
    shares = []
    for quantile in QUANTILES:
        chosen, threshold = select_by_quantile(cosines, quantile)
        shares.append(Choice(threshold=threshold or 0.0, quantile=quantile, layers=len(chosen)))
    return AdapterCosines(name=name, digest=digest, layers=layers, choices=(*fixed, *shares))
