"""Fit coefficients to the training data, as candidates for the choice of the merge."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemerge.pipeline.context import (
    StepContext,
    already_done,
    local_adapter,
    tidy,
    without_run,
)
from safemerge.pipeline.dependencies import inputs_digest, learning
from safemerge.pipeline.fine_tuning import training_examples
from safemerge.pipeline.models import local_model
from safemerge.pipeline.request import StepRequest
from safemerge.records import ArtifactRef, StepResult
from safemerge.reports.learning import Coefficients

OUTPUT = "coefficients"


def learn(context: StepContext, request: StepRequest) -> StepResult:
    """Fit one weight a layer for each adapter, for every λ of ``tuning.learning``.

    Inputs:
        task_adapter, safety_adapter: the two adapters.

    Outputs:
        coefficients: a folder with one file a λ.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    if run.plan.adapter is not None:
        return without_run("learn", run, note="an adapter was given: nothing is learned")
    if run.config.tuning is None or run.config.tuning.learning is None:
        return without_run("learn", run, note="the run has no tuning.learning: nothing is learned")
    config, tuning, fit = run.config, run.config.tuning, run.config.tuning.learning
    task, safety = request.input("task_adapter"), request.input("safety_adapter")
    for role in ("task", "safety"):
        training_examples(run, role)  # those that the run was opened with, or an error
    digest = inputs_digest(
        "learn",
        learning(config, run.plan, fit),
        task_adapter=task.digest,
        safety_adapter=safety.digest,
    )
    if done := already_done(context, run, "learn", digest, "learn"):
        return done

    from safemerge.engine.coefficient_files import folder_digest
    from safemerge.engine.learning import PAGE_FILE, learn_coefficients
    from safemerge.engine.merging import merge_settings

    output = context.workspace.work("learn", digest) / OUTPUT
    shutil.rmtree(output, ignore_errors=True)  # a killed attempt may have written it, but not stored it
    with context.ledger.step_run(run, "learn", digest) as step_run:
        step_run.log_params(fit.model_dump(mode="json"))

        def log_losses(losses: Mapping[str, float], step: int) -> None:
            weight = f"lambda {losses['harm_weight']:g}"
            step_run.log_metrics(
                {f"{weight}/{name}": loss for name, loss in losses.items() if name != "harm_weight"}, step
            )

        records = learn_coefficients(
            local_adapter(context, task),
            local_adapter(context, safety),
            local_model(context, run, "aligned_model"),
            local_model(context, run, "unaligned_model"),
            task_data=config.task_training.data,
            safety_data=config.safety_training.data,
            suites=(*config.evaluation.suites, *tuning.suites),
            learning=fit,
            output=output,
            on_log=log_losses,
            **merge_settings(config.merge),
        )
        step_run.log_table([_row(record) for record in records], "coefficients.json")
        step_run.log_file(output / PAGE_FILE)
        stored = step_run.log_folder(output, OUTPUT, folder_digest(output))
        wall_s = sum(record.cost.wall_s for record in records)
        result = step_run.finish({OUTPUT: stored}, {"fits": len(records), "wall_s": wall_s})
    context.workspace.discard(output.parent)
    tidy(context, run)
    return result


def _row(record: Coefficients) -> dict[str, Any]:
    """A fit as a line of MLflow's table: its losses on the held-out part, from where to where."""
    start, final = record.losses.validation_start, record.losses.validation_final
    return {
        "lambda": record.harm_weight,
        "step": record.steps,
        "steps_run": record.steps_run,
        "task_loss_start": start.task,
        "task_loss": final.task,
        "safety_loss_start": start.safety,
        "safety_loss": final.safety,
        "wall_s": record.cost.wall_s,
    }


def learned_folder(context: StepContext, learned: ArtifactRef) -> Path:
    """The folder that ``learn`` stored, on this machine and checked by its digest."""
    from safemerge.engine.coefficient_files import folder_digest

    return context.ledger.fetch_checked(learned, context.workspace.cache, folder_digest)
