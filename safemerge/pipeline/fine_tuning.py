"""Train the task adapter or the safety adapter on the aligned model."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from safemerge.errors import ConfigError
from safemerge.pipeline.context import (
    StepContext,
    already_done,
    check_unchanged,
    tidy,
    without_run,
)
from safemerge.pipeline.dependencies import inputs_digest, training
from safemerge.pipeline.models import local_model
from safemerge.pipeline.request import StepRequest
from safemerge.records import StepResult
from safemerge.reports.training import TRAINING_REPORT_FILE, TrainingReport
from safemerge.tracking.ledger import PipelineRun

if TYPE_CHECKING:
    from safemerge.training.data import Example


def training_examples(run: PipelineRun, role: str) -> list[Example]:
    """Training data of a role, ``task`` or ``safety``.

    Raises:
        DataError: they cannot be read.
        MismatchError: they are not those that the run was opened with.
    """
    from safemerge.training.data import data_digest, load_examples

    examples = load_examples(run.config.training_of(role).data)
    expected = run.plan.data_digests[f"{role}_training"]
    check_unchanged(f"{role} training data", expected, data_digest(examples))
    return examples


def train(context: StepContext, request: StepRequest) -> StepResult:
    """Fine-tune one LoRA adapter, resuming from the last checkpoint of a killed attempt.

    Options:
        role: ``task`` or ``safety``.

    Outputs:
        adapter: the trained adapter. Where the run judges an adapter that was given,
        nothing is trained: ``task`` hands on the unrepaired adapter, if it is known.
    """
    role = request.options.get("role")
    if role not in ("task", "safety"):
        raise ConfigError(f"option role: expected task or safety, got {role!r}")
    run = context.ledger.pipeline_run(request.opened_run_id)
    if run.plan.adapter is not None:
        given = run.plan.fine_tuned_adapter if role == "task" else None
        handed_on = {"adapter": given} if given else {}
        note = "an adapter was given: nothing is trained"
        return without_run("train", run, outputs=handed_on, reused=True, note=note)
    settings = run.config.training_of(role)
    examples, data = training_examples(run, role), run.plan.data_digests[f"{role}_training"]
    digest = inputs_digest("train", training(run.config, run.plan, role))
    label = f"train_{role}_adapter"
    if done := already_done(context, run, "train", digest, label):
        return done
    base = local_model(context, run, "aligned_model")
    work = context.workspace.work(label, digest)

    from safemerge.storage.adapters import adapter_digest
    from safemerge.training.processes import is_main_process
    from safemerge.training.sft import train_adapter

    output = work / "adapter"
    fine_tune = functools.partial(
        train_adapter,
        base,
        examples,
        output,
        work / "checkpoints",
        settings,
        model_name=run.config.aligned_model,
    )
    if not is_main_process():  # started by torchrun: the main process records and stores for all
        if not output.exists():
            fine_tune()
        return StepResult(step="train", run_id=run.run_id, inputs_digest=digest)
    with context.ledger.step_run(run, "train", digest, label) as step_run:
        step_run.log_params(
            {"role": role, **settings.model_dump(mode="json", exclude={"data", "save_every_steps"})}
        )
        step_run.log_dataset(f"{role}_training", data, ", ".join(source.path for source in settings.data))
        if output.exists():  # a killed attempt had trained it, but not stored it
            report = TrainingReport.read(output / TRAINING_REPORT_FILE)
        else:
            report = fine_tune(on_log=step_run.log_metrics)
        adapter = step_run.log_folder(output, "adapter", adapter_digest(output))
        figures = {
            "train_loss": report.final_loss,
            "steps": report.steps,
            "effective_batch_size": report.effective_batch_size,
            "wall_s": report.wall_s,
        }
        result = step_run.finish({"adapter": adapter}, figures)
    context.workspace.discard(work)
    tidy(context, run)
    return result
