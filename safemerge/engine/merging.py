"""The merge on files: two adapter folders and two checkpoints in, a merged adapter folder and its report out.

Scoring reads the checkpoints and is the costly half; any number of merges can be
written from one scoring. A merge's settings take another form in:

- ``merge_settings``: config → keyword arguments, with the coefficients that the file holds;
- ``merge_options``: config → options of the core, checked;
- ``digested_settings``: config → what a step's inputs digest covers;
- ``option_settings``: options → what a report says;
- ``merge_sections`` in :mod:`safemerge.engine.tuning`: options → config, for candidates of a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack, cast

import safemerge
from safemerge.config.merge import MergeConfig
from safemerge.core.merge import MergeResult, merge_scored
from safemerge.core.options import MergeOptions, MergeSettings
from safemerge.core.scoring import Progress
from safemerge.engine.coefficient_files import read_coefficients
from safemerge.engine.scores import ScoredAdapters, score_adapters
from safemerge.errors import ConfigError
from safemerge.records import MERGE_REPORT_FILE, LayerReport, MergeReport
from safemerge.storage.adapters import copy_adapter, write_adapter
from safemerge.storage.atomic import atomic_folder, check_absent

PLOT_FILE = "safemerge_layers.html"


def merge_adapters(
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    output: str | Path,
    hash_files: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    **settings: Unpack[MergeSettings],
) -> MergeReport:
    """Merge two adapter folders into a new one.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where the method
            needs none.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        output: Folder to make; it must not exist.
        hash_files: Let the models' digests cover whole files instead of header and tensors read.
        device: Where layers are scored: cpu, cuda, cuda:<number>, mps, or auto for the best there is.
        progress: Called after each scored layer.
        **settings: Which layers are merged, and how: fields of
            :class:`safemerge.core.options.MergeOptions`.

    Returns:
        The report, which is also in the folder.

    Raises:
        SafemergeError: options, files or tensors are wrong; the output is then not made.
    """
    output = Path(output)
    check_absent(output)
    options = MergeOptions(**settings)
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
    progress: Progress | None = None,
) -> dict[str, MergeReport]:
    """Score once and write several merges, each into a sub-folder of ``output`` named as its arm.

    All sub-folders appear together, or none does.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        output: Folder to make; it must not exist.
        arms: Arm to its merge.
        progress: Called after each scored layer.

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
        progress=progress,
    )
    with atomic_folder(output) as folder:
        return {arm: write_merge(scored, options[arm], folder / arm) for arm in arms}


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
        (folder / MERGE_REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
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


def merge_settings(config: MergeConfig) -> MergeSettings:
    """The same choices as keyword arguments, with what a file of coefficients holds.

    Raises:
        DataError: the file of coefficients is missing or holds something else.
    """
    settings = cast(MergeSettings, config.model_dump(mode="json"))
    if config.coefficients is not None:
        settings["coefficients"] = read_coefficients(config.coefficients)
    return settings


def merge_options(config: MergeConfig) -> MergeOptions:
    """The same choices, checked, for the core.

    Raises:
        ConfigError: they do not go together.
        DataError: the file of coefficients is missing or holds something else.
    """
    return MergeOptions(**merge_settings(config))


def digested_settings(config: MergeConfig) -> dict[str, Any]:
    """The same choices as plain data, of coefficients what their file holds and not where it lies.

    Raises:
        DataError: the file of coefficients is missing or holds something else.
    """
    settings = config.model_dump(mode="json", exclude={"coefficients"})
    if config.coefficients is not None:
        settings["coefficients"] = read_coefficients(config.coefficients).digest
    return settings


def option_settings(options: MergeOptions) -> dict[str, Any]:
    """Options as plain data, with the weights that are meant where none were given."""
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    settings |= dict(zip(("task_weight", "safety_weight"), options.weights, strict=True))
    if options.coefficients is not None:
        # Every layer has its own; those stand beside the layers.
        settings |= {"task_weight": None, "safety_weight": None, "coefficients": options.coefficients.digest}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
