"""Many merges weighed against each other: checkpoints are read once, adapters written for the chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import safemerge
from safemerge.config.grid import SweepGrid
from safemerge.core import methods
from safemerge.core.difference import difference_norm, in_coordinates, inner_product
from safemerge.core.lora import LoraPair
from safemerge.core.merge import MergePlan, plan_merge, stored
from safemerge.core.options import SELECTIONS, MergeOptions
from safemerge.core.scoring import LayerScore, Progress
from safemerge.engine.coefficient_files import read_coefficients
from safemerge.engine.merging import option_settings, write_merge
from safemerge.engine.scores import ScoredAdapters, score_adapters
from safemerge.errors import ConfigError
from safemerge.reports.adapters import Candidate, SweepReport
from safemerge.storage.atomic import atomic_folder, check_absent

REPORT_FILE = "safemerge_sweep.json"
PAGE_FILE = "safemerge_sweep.html"
ALL = "all"


def candidates(grid: SweepGrid) -> dict[str, MergeOptions]:
    """The merges of a grid by name, each once.

    A name says what was chosen, such as ``exact_q0.5_w0.8_0.2``; methods that change every layer have no
    choice of layers in theirs.

    Raises:
        ConfigError: a value is out of bounds, or two files of coefficients have one λ, or there is none for
            the method that wants one.
        DataError: a file of coefficients is missing or holds something else.
    """
    found: dict[str, MergeOptions] = {}
    for name in grid.methods:
        method = methods.get(name)
        if method.weighs_layers:
            if not grid.coefficients:
                raise ConfigError(f"grid: expected files of coefficients for method {name}, got none")
            continue
        for density in grid.densities if method.prunes else (None,):
            for choice, weights in grid.points():
                options = MergeOptions(
                    method=name,
                    density=density,
                    components=grid.components if method.decomposes else None,
                    on_undefined=grid.on_undefined.value,
                    seed=grid.seed,
                    rank=grid.rank,
                    max_error=grid.max_error,
                    **(choice if method.chooses else {}),  # type: ignore[arg-type]
                    **weights,  # type: ignore[arg-type]
                )
                found.setdefault(candidate_name(options), options)
    return found | _learned(grid)


def _learned(grid: SweepGrid) -> dict[str, MergeOptions]:
    """A candidate for each file of coefficients."""
    return {
        name: MergeOptions(coefficients=read_coefficients(file), rank=grid.rank, max_error=grid.max_error)
        for name, file in files_by_candidate(grid).items()
    }


def files_by_candidate(grid: SweepGrid) -> dict[str, Path]:
    """Candidate to its file of coefficients, for those that have one.

    Raises:
        ConfigError: two files have one λ.
        DataError: a file is missing or holds something else.
    """
    found: dict[str, Path] = {}
    for file in grid.coefficients:
        name = candidate_name(MergeOptions(coefficients=read_coefficients(file)))
        if name in found:
            raise ConfigError(f"coefficients: expected files of different λ, got {name} again in {file}")
        found[name] = Path(file)
    return found


def candidate_name(options: MergeOptions) -> str:
    """A name that fits into file names and says what sets a candidate apart.

    >>> candidate_name(MergeOptions(quantile=0.5, task_weight=0.7))
    'exact_q0.5_w0.7_0.3'
    """
    if options.coefficients is not None:
        return f"{options.method}_{options.coefficients.name}"
    parts = [options.method]
    chosen = {"t": options.threshold, "q": options.quantile, "n": options.count}
    parts += [f"{letter}{value:g}" for letter, value in chosen.items() if value is not None]
    task, safety = options.weights
    # Rounded: 1 − 0.7 is 0.3 to whom typed 0.7.
    parts.append(
        f"w{task:g}" + (f"_{round(safety, 9):g}" if methods.get(options.method).weighs_safety else "")
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
    device: str = "cpu",
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
        device: Where layers are scored: cpu, cuda, cuda:<number>, mps, or auto for the best there is.
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
        device=device,
        progress=progress,
    )
    weighed = weigh(scored, candidates)
    if output is None:
        return _report(scored, weighed)
    written = [
        candidate.model_copy(update={"output": candidate.name}) if candidate.name in chosen else candidate
        for candidate in weighed
    ]
    report = _report(scored, written)
    with atomic_folder(Path(output)) as folder:
        _write(report, scored, {name: candidates[name] for name in chosen}, folder)
    return report


def weigh(scored: ScoredAdapters, candidates: Mapping[str, MergeOptions]) -> list[Candidate]:
    """What each merge would be, without writing it.

    Raises:
        SafemergeError: the adapters cannot be merged that way.
    """
    safety = None if scored.safety is None else scored.safety.pairs
    full = _Layers(scored.task.pairs, safety, scored.scores)
    # Methods that prune look at single entries; all others take the updates in any basis.
    scales = {True: _Scales(full, full), False: _Scales(full, full.in_coordinates())}
    return [
        scales[methods.get(options.method).prunes].candidate(name, options)
        for name, options in candidates.items()
    ]


class _Layers(NamedTuple):
    """What merges are made of."""

    task: Mapping[str, LoraPair]
    safety: Mapping[str, LoraPair] | None
    scores: Mapping[str, LayerScore]

    def in_coordinates(self) -> _Layers:
        """The same in bases of each layer, in which updates are small matrices."""
        task, safety, scores = {}, {}, {}
        for module, pair in self.task.items():
            others = dict(self.scores[module].terms)
            if self.safety is not None and module in self.safety:
                others[""] = self.safety[module]
            task[module], *rest = in_coordinates([pair, *others.values()])
            small = dict(zip(others, rest, strict=True))
            if "" in small:
                safety[module] = small.pop("")
            scores[module] = self.scores[module]._replace(terms=small)
        return _Layers(task, None if self.safety is None else safety, scores)


class _Figures(NamedTuple):
    """Of one layer's stored update ΔW, all in float64."""

    change: float
    """‖ΔW − ΔW_task‖."""
    norm: float
    """‖ΔW‖."""
    safety: float
    """⟨ΔW, ΔW_safety⟩; 0 where the safety adapter lacks the layer."""
    rank: int
    error: float
    """Relative error of storing it."""


class _Scales:
    """Weighs updates, each once: merges that differ only in the layers they choose share them."""

    def __init__(self, full: _Layers, layers: _Layers) -> None:
        self._layers = layers
        self._task_norm = math.hypot(*(score.task_norm for score in full.scores.values()))
        self._safety_norm = math.hypot(*(pair.norm() for pair in (full.safety or {}).values()))
        self._known: dict[tuple[object, ...], _Figures] = {}

    def candidate(self, name: str, options: MergeOptions) -> Candidate:
        """Sum a merge up over its layers."""
        plan = plan_merge(*self._layers, options)
        found = [self._figures(plan, module) for module in self._layers.task]
        change, norm = (
            math.hypot(*(getattr(figures, what) for figures in found)) for what in ("change", "norm")
        )
        safety = sum(figures.safety for figures in found)
        comparable = norm > 0 and self._safety_norm > 0
        return Candidate(
            name=name,
            options=option_settings(options),
            layers_merged=len(plan.selection.chosen),
            threshold=plan.selection.threshold,
            change=change / self._task_norm if self._task_norm > 0 else 0.0,
            safety_cosine=safety / norm / self._safety_norm if comparable else None,
            rank=options.rank or max(figures.rank for figures in found),
            error=max(figures.error for figures in found),
        )

    def _figures(self, plan: MergePlan, module: str) -> _Figures:
        merged = module in plan.selection.chosen
        compressing = plan.options.rank is not None or plan.options.max_error is not None
        if merged or compressing or plan.method.changes_kept:
            rest = (value for name, value in vars(plan.options).items() if name not in SELECTIONS)
            key: tuple[object, ...] = (module, merged, *rest)
        else:
            key = (module,)  # ΔW_task as it is, whatever the options
        if key not in self._known:
            self._known[key] = self._weighed(plan, module)
        return self._known[key]

    def _weighed(self, plan: MergePlan, module: str) -> _Figures:
        task, safety = self._layers.task[module], (self._layers.safety or {}).get(module)
        update, error = stored(plan, module)
        with_safety = 0.0 if safety is None else inner_product(update, safety)
        return _Figures(difference_norm(update, task), update.norm(), with_safety, update.rank, error or 0.0)


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
