"""Measure one arm: task utility, harmfulness and over-refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from safemerge.arms import ALIGNED
from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.places import without_places
from safemerge.errors import ConfigError
from safemerge.pipeline.context import (
    StepContext,
    already_done,
    check_unchanged,
    local_adapter,
    tidy,
    without_run,
)
from safemerge.pipeline.dependencies import inputs_digest, measuring
from safemerge.pipeline.models import local_model
from safemerge.pipeline.request import StepRequest
from safemerge.records import (
    EVALUATION_REPORT_FILE,
    RESPONSES_TABLE,
    ArtifactRef,
    EvaluationReport,
    JudgeRecord,
    StepResult,
)
from safemerge.tracking import tags
from safemerge.tracking.ledger import PipelineRun

EVALUATION = "evaluate_"
"""How the labels of evaluations begin; the arm follows."""


class Measurement(NamedTuple):
    """What is to be measured of an arm, and what that was when the run was opened."""

    settings: EvaluationConfig
    task_digest: str | None
    """sha256 of the utility task; None where utility is not measured."""
    suite_digests: Mapping[str, str]
    """Suite to the sha256 of its prompts, for those to be checked here."""
    step: str = "evaluate"
    """Kind of work in the record: reports of a part of the prompts stand for no evaluation of the adapter."""


def evaluate(context: StepContext, request: StepRequest) -> StepResult:
    """Evaluate the aligned model, or an adapter on it.

    The figures of an adapter are kept by its digest: whatever an arm is called, it is
    measured once.

    Options:
        arm: name of the arm; ``aligned`` takes no adapter.

    Inputs:
        adapter: the adapter to measure. An arm that has none in this run gives no outputs.

    Outputs:
        report: the figures as JSON.
    """
    arm = request.options.get("arm")
    if not isinstance(arm, str) or not arm:
        raise ConfigError(f"option arm: expected a name, got {arm!r}")
    run = context.ledger.pipeline_run(request.opened_run_id)
    adapter = request.inputs.get("adapter")
    if adapter is None and arm != ALIGNED:
        return without_run("evaluate", run, note=f"this run has no adapter for the arm {arm}")
    asked = Measurement(
        run.config.evaluation,
        run.plan.task_digest,
        {suite.name: run.plan.data_digests[f"suite {suite.name}"] for suite in run.config.evaluation.suites},
    )
    return measure(context, run, arm, adapter, asked, f"{EVALUATION}{arm}")


def measure(
    context: StepContext,
    run: PipelineRun,
    arm: str,
    adapter: ArtifactRef | None,
    asked: Measurement,
    label: str,
) -> StepResult:
    """The figures of an arm, from the record where they are there; output ``report``.

    Args:
        context: the ledger and this machine's folders.
        run: the pipeline run.
        arm: name of the arm.
        adapter: its adapter; None for the aligned model.
        asked: what is measured.
        label: name of the step within the pipeline run.
    """
    from safemerge.evaluation.judges import make_judges
    from safemerge.evaluation.suites import read_suite

    settings = asked.settings
    suites = [read_suite(suite) for suite in settings.suites]
    for suite in suites:
        if suite.name in asked.suite_digests:
            check_unchanged(f"suite {suite.name}", asked.suite_digests[suite.name], suite.digest())
    judges = make_judges(settings)
    known = measuring(settings, run.plan, run.config.gate, suites, judges, asked.task_digest, adapter)
    digest = inputs_digest(asked.step, known)
    if done := already_done(context, run, asked.step, digest, label):
        return done
    model = local_model(context, run, "aligned_model")
    folder = local_adapter(context, adapter) if adapter else None

    from safemerge.evaluation.evaluating import evaluate_arm

    work = context.workspace.work(label, digest)
    with context.ledger.step_run(run, asked.step, digest, label) as step_run:
        step_run.log_params({k: value for k, value in without_places(settings).items() if k != "suites"})
        step_run.set_tags({tags.ARM: arm, tags.JUDGE: _who_judged(judge.record for judge in judges.values())})
        for suite in suites:
            step_run.log_dataset(suite.name, suite.digest(), suite.source)
        evaluation = evaluate_arm(
            model,
            folder,
            arm,
            settings,
            model_digest=run.plan.model_digests["aligned_model"],
            adapter_digest=adapter.digest if adapter else None,
            policy=run.config.gate,
            work=work,
            with_utility=asked.task_digest is not None,
        )
        if evaluation.report.utility is not None and asked.task_digest is not None:
            check_unchanged("utility task", asked.task_digest, evaluation.report.utility.task_digest)
        figures = _figures(evaluation.report)
        step_run.log_metrics(figures)
        if evaluation.rows:
            step_run.log_table(evaluation.rows, RESPONSES_TABLE)
        report = step_run.log_text(evaluation.report.to_json(), EVALUATION_REPORT_FILE)
        if adapter is not None:
            step_run.set_tags({tags.ADAPTER_DIGEST: adapter.digest})
        result = step_run.finish({"report": report}, figures)
    context.workspace.discard(work)
    tidy(context, run)
    return result


def _who_judged(judges: Iterable[JudgeRecord]) -> str:
    """Every judge once, with its revision; smoke judges are called so."""
    named = (f"{j.id} (revision {j.revision}){', a smoke judge' if j.smoke else ''}" for j in judges)
    return "; ".join(dict.fromkeys(named))


def _figures(report: EvaluationReport) -> dict[str, float | None]:
    """The figures of a report by the names that MLflow charts them under."""
    figures: dict[str, float | None] = {}
    for suite in report.suites:
        figures[f"{suite.kind}_rate.{suite.suite}"] = suite.rate
        if suite.interval:
            figures[f"{suite.kind}_rate_low.{suite.suite}"] = suite.interval.low
            figures[f"{suite.kind}_rate_high.{suite.suite}"] = suite.interval.high
    if report.utility:
        figures[f"utility.{report.utility.task}.{report.utility.metric}"] = report.utility.value
    return figures
