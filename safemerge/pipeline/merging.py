"""Repair the task adapter by SafeMERGE, and make the controls that say what the repair is worth."""

from __future__ import annotations

import logging
import shutil
from statistics import median
from typing import Any

from safemerge.arms import SAFEMERGE, SCALE, SCALE_SELECTED
from safemerge.config.merge import MergeConfig
from safemerge.pipeline.context import (
    StepContext,
    already_done,
    local_adapter,
    local_file,
    tidy,
    without_run,
)
from safemerge.pipeline.dependencies import inputs_digest, merging
from safemerge.pipeline.models import local_model
from safemerge.pipeline.request import StepRequest
from safemerge.records import MergeReport, StepResult
from safemerge.reports.tuning import TuneReport

logger = logging.getLogger(__name__)


def arms_of(config: MergeConfig) -> dict[str, MergeConfig]:
    """The configured merge and its two controls: its weight and selection without the safety adapter."""
    from safemerge.core import methods
    from safemerge.engine.merging import merge_options

    controls: dict[str, Any] = {
        "task_weight": merge_options(config).weights[0],
        "safety_weight": None,
        "density": None,
        "components": None,
        "coefficients": None,
    }
    if not methods.get(config.method).chooses:  # what it changes is every layer
        controls |= {"threshold": None, "quantile": None, "count": None, "modules": ("*",)}
    return {
        SAFEMERGE: config,
        SCALE: config.model_copy(update=controls | {"method": "scale"}),
        SCALE_SELECTED: config.model_copy(update=controls | {"method": "scale_selected"}),
    }


def merge(context: StepContext, request: StepRequest) -> StepResult:
    """Score every layer once and write all arms.

    Inputs:
        task_adapter, safety_adapter: the two adapters.
        choice: what ``choose`` chose, where the config has a ``tuning``; its settings replace the config's.
        coefficients: the file of those that were chosen, where the choice is one of coefficients.

    Outputs:
        safemerge: the repaired adapter; the given one where the run judges an adapter again.
        scale, scale_selected: the controls.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    if run.plan.adapter is not None:
        note = "an adapter was given: nothing is merged"
        return without_run("merge", run, outputs={SAFEMERGE: run.plan.adapter}, reused=True, note=note)
    from safemerge.engine.merging import PLOT_FILE, digested_settings, merge_arms, merge_options

    task, safety = request.input("task_adapter"), request.input("safety_adapter")
    config = run.config.merge
    if run.config.tuning is not None:
        config = chosen_merge(context, request)
    options = merge_options(config)
    digest = inputs_digest(
        "merge",
        merging(config, run.plan),
        task_adapter=task.digest,
        safety_adapter=safety.digest,
    )
    if done := already_done(context, run, "merge", digest, "merge"):
        return done

    from safemerge.storage.adapters import adapter_digest

    output = context.workspace.work("merge", digest) / "arms"
    shutil.rmtree(output, ignore_errors=True)  # a killed attempt may have written it, but not stored it
    with context.ledger.step_run(run, "merge", digest) as step_run:
        task_weight, safety_weight = options.weights
        weights = {"task_weight": task_weight, "safety_weight": safety_weight}
        step_run.log_params(digested_settings(config) | weights)
        reports = merge_arms(
            local_adapter(context, task),
            local_adapter(context, safety),
            local_model(context, run, "aligned_model"),
            local_model(context, run, "unaligned_model"),
            output=output,
            arms=arms_of(config),
            progress=_log_progress,
        )
        report = reports[SAFEMERGE]
        figures = _figures(report)
        step_run.log_metrics(figures)
        step_run.log_table([layer.model_dump() for layer in report.layers], "layers.json")
        step_run.log_file(output / SAFEMERGE / PLOT_FILE)
        outputs = {
            arm: step_run.log_folder(output / arm, arm, adapter_digest(output / arm)) for arm in reports
        }
        result = step_run.finish(outputs, figures)
    context.workspace.discard(output.parent)
    tidy(context, run)
    return result


def chosen_merge(context: StepContext, request: StepRequest) -> MergeConfig:
    """The settings that were chosen on the development split.

    Raises:
        ConfigError: they are of coefficients, and those are missing.
        DataError: none were chosen, as where somebody marked the failed choice a success.
    """
    choice = TuneReport.read(local_file(context, request.input("choice")))
    config = MergeConfig.model_validate(choice.winner.settings)
    if config.coefficients is None:
        return config
    file = local_file(context, request.input("coefficients"))
    return config.model_copy(update={"coefficients": str(file)})


def _figures(report: MergeReport) -> dict[str, float | int | None]:
    """How many layers were merged, the spread of the cosines, and how strong the safety adapter is."""
    cosines = [layer.cosine for layer in report.layers if layer.cosine is not None]
    return {
        "layers": len(report.layers),
        "merged_layers": sum(layer.merged for layer in report.layers),
        "threshold": report.threshold,
        "cosine_min": min(cosines, default=None),
        "cosine_median": median(cosines) if cosines else None,
        "cosine_max": max(cosines, default=None),
        "task_norm": _total_norm([layer.task_norm for layer in report.layers]),
        "safety_norm": _total_norm([layer.safety_norm for layer in report.layers]),
    }


def _total_norm(norms: list[float | None]) -> float:
    return float(sum(norm**2 for norm in norms if norm is not None) ** 0.5)


def _log_progress(done: int, total: int, module: str) -> None:
    if done == total or done % max(1, total // 10) == 0:
        logger.info("scored %d of %d layers, last %s", done, total, module)
