"""Full models: the aligned checkpoint with an adapter, or with a merge never stored as one, folded in.

Written shard by shard and block by block, in the checkpoint's own sharding, names, order, dtypes and
metadata; no model is ever instantiated. Tensors without an update are copied bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Unpack, get_args

import safemerge
from safemerge.core.merge import MergePlan, MergeResult, plan_merge
from safemerge.core.module_names import natural_order
from safemerge.core.options import MergeOptions, MergeSettings
from safemerge.core.scoring import Progress
from safemerge.engine.merging import merge_report
from safemerge.engine.scores import ScoredAdapters, score_adapters
from safemerge.errors import ConfigError
from safemerge.records import MERGE_REPORT_FILE, MergeReport
from safemerge.reports.adapters import ExportReport
from safemerge.storage.adapters import adapter_digest, read_adapter
from safemerge.storage.atomic import atomic_folder, check_absent
from safemerge.storage.base_models import check_same_base
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.disk import check_disk_room, full_disk_errors
from safemerge.storage.folded_checkpoint import FoldedCheckpoint, WeightChanges
from safemerge.storage.hub import hub_id, resolve
from safemerge.storage.hub_upload import HubTarget
from safemerge.storage.model_files import write_card

EXPORT_FILE = "safemerge_export.json"

Dtype = Literal["keep", "bfloat16", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
"""What float tensors may be stored as; ``keep`` leaves each its own."""


def export_adapter(
    model: str | Path,
    adapter: str | Path,
    *,
    output: str | Path,
    dtype: Dtype = "keep",
    hub: HubTarget | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model with a LoRA or DoRA adapter folded in.

    Args:
        model: Folder or hub id of the model that the adapter was trained on.
        adapter: Folder or hub id of the adapter.
        output: Folder to make; it must not exist.
        dtype: What to store float tensors as. Sums are made in fp32 and rounded once.
        hub: Repository to upload the folder to, once it is whole.
        progress: Called with bytes written, bytes in all, and the tensor.

    Returns:
        The report, which is also in the folder, beside that of the merge where the adapter has one.

    Raises:
        SafemergeError: files or tensors are wrong, or there is no room; the output is then not made.
    """
    output = Path(output)
    check_absent(output)
    if hub is not None:
        hub.check()
    read = read_adapter(resolve(adapter, "adapter"), dora=True)
    warnings = check_same_base({"adapter": read.config}, model)
    changes = WeightChanges(
        shapes={module: pair.shape for module, pair in read.pairs.items()},
        update=read.pairs.__getitem__,
        magnitudes=read.magnitudes,
        saved=read.saved,
    )
    checkpoint = Checkpoint.open(resolve(model))
    folded = _folded(checkpoint, changes, dtype, output)
    report = _report(
        folded,
        dtype,
        model=model,
        adapter=adapter,
        digests={"adapter": adapter_digest(read.folder, dora=True)},
        warnings=warnings,
    )
    _write(folded, checkpoint.folder, output, report, _report_of(read.folder), progress)
    if hub is not None:
        hub.upload(output)
    return report


def export_merge(
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    output: str | Path,
    dtype: Dtype = "keep",
    device: str = "cpu",
    hub: HubTarget | None = None,
    scoring_progress: Progress | None = None,
    progress: Progress | None = None,
    **settings: Unpack[MergeSettings],
) -> ExportReport:
    """Merge two adapters and write the aligned model with the result folded in.

    Updates go into the weights as the method makes them: those of full rank, such as of ``ties``, lose
    nothing to the ranks of an adapter.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where the method
            needs none.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        output: Folder to make; it must not exist.
        dtype: What to store float tensors as. Sums are made in fp32 and rounded once.
        device: Where layers are scored: cpu, cuda, cuda:<number>, mps, or auto for the best there is.
        hub: Repository to upload the folder to, once it is whole.
        scoring_progress: Called after each scored layer.
        progress: Called with bytes written, bytes in all, and the tensor.
        **settings: Which layers are merged, and how: fields of
            :class:`safemerge.core.options.MergeOptions`. Ranks play no part in a full model.

    Returns:
        The report, which is also in the folder, beside the merge's.

    Raises:
        SafemergeError: options, files or tensors are wrong, or there is no room; the output is then not
            made.
    """
    output = Path(output)
    check_absent(output)
    options = MergeOptions(**settings)
    if options.rank is not None or options.max_error is not None:
        raise ConfigError("expected no rank and no max_error: a full model stores updates as they are")
    if hub is not None:
        hub.check()
    checkpoint = Checkpoint.open(resolve(aligned_model))
    _folded(checkpoint, WeightChanges(), dtype, output)  # room for it, before the work
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        aligned_model,
        unaligned_model,
        merges=[options],
        device=device,
        progress=scoring_progress,
    )
    safety = None if scored.safety is None else scored.safety.pairs
    plan = plan_merge(scored.task.pairs, safety, scored.scores, options)
    changes = WeightChanges(
        shapes={module: pair.shape for module, pair in scored.task.pairs.items()},
        update=plan.update,
        saved=scored.task.saved,
    )
    folded = _folded(checkpoint, changes, dtype, output)
    report = _report(
        folded,
        dtype,
        model=aligned_model,
        adapter=task_adapter,
        method=options.method,
        digests=scored.digests,
        warnings=scored.warnings,
    )
    _write(folded, checkpoint.folder, output, report, _merge_report(plan, scored).to_json(), progress)
    if hub is not None:
        hub.upload(output)
    return report


def _folded(checkpoint: Checkpoint, changes: WeightChanges, dtype: str, output: Path) -> FoldedCheckpoint:
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    folded = FoldedCheckpoint(checkpoint, changes, None if dtype == "keep" else dtype)
    check_disk_room(output, folded.needed_bytes)
    return folded


def _report(
    folded: FoldedCheckpoint,
    dtype: str,
    *,
    model: str | Path,
    adapter: str | Path,
    digests: dict[str, str],
    warnings: tuple[str, ...],
    method: str | None = None,
) -> ExportReport:
    return ExportReport(
        safemerge_version=safemerge.__version__,
        model=_hub_name(model),
        adapter=_hub_name(adapter),
        method=method,
        dtype=dtype,
        digests=digests,
        changed=folded.changed,
        untied=folded.untied,
        n_bytes=folded.n_bytes,
        warnings=warnings,
    )


def _merge_report(plan: MergePlan, scored: ScoredAdapters) -> MergeReport:
    """The record of a merge whose updates are stored nowhere but in the weights."""
    result = MergeResult(
        layers={},
        decisions=tuple(plan.decision(module) for module in sorted(plan.task, key=natural_order)),
        threshold=plan.selection.threshold,
        safety_only=tuple(sorted(set(plan.safety) - set(plan.task), key=natural_order)),
        unchanged=plan.unchanged,
    )
    return merge_report(result, plan.options, scored.digests, scored.warnings)


def _report_of(adapter: Path) -> str | None:
    """The merge report that a repaired adapter carries with it."""
    path = adapter / MERGE_REPORT_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _write(
    folded: FoldedCheckpoint,
    source: Path,
    output: Path,
    report: ExportReport,
    merge: str | None,
    progress: Progress | None,
) -> None:
    done, total = 0, folded.tensor_bytes

    def advance(tensor: str, n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress is not None:
            progress(done, total, tensor)

    with full_disk_errors(output.parent), atomic_folder(output) as folder:
        folded.write(folder, advance)
        write_card(source, folder, base=report.model, title=output.name, lines=_card_lines(report))
        (folder / EXPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        if merge is not None:
            (folder / MERGE_REPORT_FILE).write_text(merge, encoding="utf-8")


def _card_lines(report: ExportReport) -> list[str]:
    model, adapter = report.model or "a local model", report.adapter or "a local adapter"
    how = f"the LoRA adapter `{adapter}`"
    if report.method is not None:
        how += f", repaired for safety by the method `{report.method}`,"
    return [
        f"The weights of `{model}` with {how} folded in, made by safemerge {report.safemerge_version}. "
        f"`{EXPORT_FILE}` says which tensors changed"
        + (f", `{MERGE_REPORT_FILE}` what was done with each layer." if report.method is not None else "."),
        "What this model is good at and how safe it is was not measured here; the card of the original "
        "model does not hold for it.",
    ]


def _hub_name(source: str | Path) -> str | None:
    """The hub id as it was written, without revision; None of a folder."""
    return None if hub_id(source) is None else str(source).partition("@")[0]
