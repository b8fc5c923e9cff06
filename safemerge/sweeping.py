"""Many merges weighed against each other: checkpoints are read once, adapters written for the chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

import safemerge
from safemerge.config.recipes import SweepGrid
from safemerge.core import methods
from safemerge.core.compress import compressed
from safemerge.core.difference import inner_product
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergePlan, plan_merge
from safemerge.core.options import SELECTIONS, MergeOptions
from safemerge.core.scoring import Progress
from safemerge.errors import ConfigError
from safemerge.merging import ScoredAdapters, option_settings, score_adapters, write_merge
from safemerge.reports import Candidate, SweepReport
from safemerge.storage.atomic import atomic_folder, check_absent

REPORT_FILE = "safemerge_sweep.json"
PAGE_FILE = "safemerge_sweep.html"
ALL = "all"


def candidates(grid: SweepGrid) -> dict[str, MergeOptions]:
    """The merges of a grid by name, each once.

    A name says what was chosen, such as ``exact_q0.5_w0.8_0.2``; methods that change every layer have no
    choice of layers in theirs.

    Raises:
        ConfigError: a value is out of bounds.
    """
    found: dict[str, MergeOptions] = {}
    for name in grid.methods:
        method = methods.get(name)
        for density in grid.densities if method.prunes else (None,):
            for choice, weights in grid.points():
                options = MergeOptions(
                    method=name,
                    density=density,
                    on_undefined=grid.on_undefined.value,
                    seed=grid.seed,
                    rank=grid.rank,
                    max_error=grid.max_error,
                    **(choice if method.chooses else {}),  # type: ignore[arg-type]
                    **weights,  # type: ignore[arg-type]
                )
                found.setdefault(candidate_name(options), options)
    return found


def candidate_name(options: MergeOptions) -> str:
    """A name that fits into file names and says what sets a candidate apart.

    >>> candidate_name(MergeOptions(quantile=0.5, task_weight=0.7))
    'exact_q0.5_w0.7_0.3'
    """
    parts = [options.method]
    chosen = {"t": options.threshold, "q": options.quantile, "n": options.count}
    parts += [f"{letter}{value:g}" for letter, value in chosen.items() if value is not None]
    task, safety = options.weights
    # Rounded: 1 − 0.7 is 0.3 to whom typed 0.7.
    parts.append(
        f"w{task:g}" + (f"_{round(safety, 9):g}" if methods.get(options.method).needs_safety else "")
    )
    if options.density is not None:
        parts.append(f"d{options.density:g}")
    return "_".join(parts)


def sweep_adapters(
    task_adapter: str | Path,
    safety_adapter: str | Path | None,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    candidates: Mapping[str, MergeOptions],
    output: str | Path | None = None,
    write: Collection[str] = (),
    hash_files: bool = False,
    progress: Progress | None = None,
) -> SweepReport:
    """Score the task adapter once and weigh any number of merges of it.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety; None where no method
            needs one.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        candidates: Merges by name, such as :func:`candidates` makes them.
        output: Folder to make for the report, a page and the adapters; it must not exist.
        write: Names of candidates to write as adapters, each into a folder of its name; or ``all``.
        hash_files: Let the models' digests cover whole files instead of header and tensors read.
        progress: Called after each scored layer.

    Returns:
        The report, which is also in the folder.

    Raises:
        SafemergeError: options, files or tensors are wrong; the output is then not made.
    """
    chosen = _chosen(candidates, write)
    if chosen and output is None:
        raise ConfigError(f"expected an output folder to write {', '.join(chosen)} to, got none")
    if output is not None:
        check_absent(Path(output))
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        aligned_model,
        unaligned_model,
        merges=list(candidates.values()),
        hash_files=hash_files,
        progress=progress,
    )
    weighed = weigh(scored, candidates)
    if output is None:
        return _report(scored, weighed)
    weighed = [
        candidate.model_copy(update={"output": candidate.name}) if candidate.name in chosen else candidate
        for candidate in weighed
    ]
    report = _report(scored, weighed)
    with atomic_folder(Path(output)) as folder:
        _write(report, scored, {name: candidates[name] for name in chosen}, folder)
    return report


def weigh(scored: ScoredAdapters, candidates: Mapping[str, MergeOptions]) -> list[Candidate]:
    """What each merge would be, without writing it."""
    safety = None if scored.safety is None else scored.safety.pairs
    plans = {
        name: plan_merge(scored.task.pairs, safety, scored.scores, options)
        for name, options in candidates.items()
    }
    scales = _Scales(scored)
    return [scales.candidate(name, plan) for name, plan in plans.items()]


class _Figures(NamedTuple):
    """Of one layer's stored update ΔW, all in float64."""

    change: float
    """‖ΔW − ΔW_task‖²."""
    square: float
    """‖ΔW‖²."""
    safety: float
    """⟨ΔW, ΔW_safety⟩; 0 where the safety adapter lacks the layer."""
    rank: int
    error: float | None
    """Relative error of storing it; None where that is not known."""


class _Scales:
    """Weighs updates, each once: merges that differ only in the layers they choose share them."""

    def __init__(self, scored: ScoredAdapters) -> None:
        self._task = scored.task.pairs
        self._safety = {} if scored.safety is None else scored.safety.pairs
        self._task_square = sum(score.task_norm**2 for score in scored.scores.values())
        self._safety_square = sum(pair.norm() ** 2 for pair in self._safety.values())
        self._kept = {
            module: _Figures(0.0, score.task_norm**2, self._with_safety(pair, module), pair.rank, 0.0)
            for module, score in scored.scores.items()
            if (pair := self._task[module])
        }
        self._known: dict[tuple[str, bool, tuple[object, ...]], _Figures] = {}

    def candidate(self, name: str, plan: MergePlan) -> Candidate:
        """Sum a merge up over its layers."""
        found = {module: self._of(plan, module) for module in self._task}
        change, square, safety = (
            sum(getattr(figures, what) for figures in found.values())
            for what in ("change", "square", "safety")
        )
        errors = [figures.error for figures in found.values()]
        known = [error for error in errors if error is not None]
        weighed = square > 0 and self._safety_square > 0
        return Candidate(
            name=name,
            options=option_settings(plan.options),
            layers_merged=len(plan.selection.chosen),
            threshold=plan.selection.threshold,
            change=math.sqrt(max(0.0, change) / self._task_square) if self._task_square > 0 else 0.0,
            safety_cosine=safety / math.sqrt(square * self._safety_square) if weighed else None,
            rank=plan.options.rank or max(figures.rank for figures in found.values()),
            error=max(known) if len(known) == len(errors) else None,
        )

    def _of(self, plan: MergePlan, module: str) -> _Figures:
        merged = module in plan.selection.chosen
        compressing = plan.options.rank is not None or plan.options.max_error is not None
        if not (merged or compressing or plan.method.changes_kept):
            return self._kept[module]
        rest = tuple(value for name, value in vars(plan.options).items() if name not in SELECTIONS)
        key = (module, merged, rest)
        if key not in self._known:
            self._known[key] = self._weighed(plan, module, compressing)
        return self._known[key]

    def _weighed(self, plan: MergePlan, module: str, compressing: bool) -> _Figures:
        update, task = plan.update(module), self._task[module]
        error: float | None = None if isinstance(update, torch.Tensor) else 0.0
        if compressing:
            update, error = compressed(update, rank=plan.options.rank, max_error=plan.options.max_error)
        if isinstance(update, LoraPair):
            square = inner_product(update, update)
            change = square - 2 * inner_product(update, task) + plan.scores[module].task_norm ** 2
            return _Figures(change, square, self._with_safety(update, module), update.rank, error)
        # The method built the update in full, so that one more such matrix costs little.
        change = float(torch.linalg.vector_norm(update - task.delta())) ** 2
        safety, with_safety = self._safety.get(module), 0.0
        if safety is not None:
            projected = safety.lora_b.to(update.dtype).T @ update
            with_safety = safety.scale * float((projected * safety.lora_a.to(update.dtype)).sum())
        rank = task.rank + (0 if safety is None else safety.rank)
        return _Figures(change, float(torch.linalg.vector_norm(update)) ** 2, with_safety, rank, None)

    def _with_safety(self, update: LoraPair, module: str) -> float:
        safety = self._safety.get(module)
        return 0.0 if safety is None else inner_product(update, safety)


def _chosen(candidates: Mapping[str, MergeOptions], write: Collection[str]) -> list[str]:
    if not candidates:
        raise ConfigError("expected at least one candidate, got none")
    if wrong := sorted(name for name in candidates if Path(name).name != name or name.startswith(".")):
        raise ConfigError(f"candidates: expected plain names, got {', '.join(map(repr, wrong))}")
    if ALL in write:
        return list(candidates)
    if unknown := sorted(set(write) - candidates.keys()):
        known = ", ".join(candidates)
        raise ConfigError(f"write: expected {ALL} or candidates ({known}), got {', '.join(unknown)}")
    return [name for name in candidates if name in write]


def _report(scored: ScoredAdapters, weighed: list[Candidate]) -> SweepReport:
    return SweepReport(
        safemerge_version=safemerge.__version__,
        digests=scored.digests,
        layers=len(scored.task.pairs),
        candidates=tuple(weighed),
        warnings=scored.warnings,
    )


def _write(
    report: SweepReport, scored: ScoredAdapters, chosen: Mapping[str, MergeOptions], folder: Path
) -> None:
    from safemerge.plots.sweep import sweep_html

    for name, options in chosen.items():
        write_merge(scored, options, folder / name)
    (folder / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    (folder / PAGE_FILE).write_text(sweep_html(report), encoding="utf-8")
