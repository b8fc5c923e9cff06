"""Open a pipeline run: everything cheap that can be wrong is found here, before hours of training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.load import load_pipeline
from safemerge.config.pipeline import PipelineConfig
from safemerge.core.options import with_partners_cleared
from safemerge.errors import ConfigError, MismatchError
from safemerge.gate import check_decidable, check_suites
from safemerge.pipeline.context import StepContext, without_run
from safemerge.pipeline.dependencies import TUNING_TASK, plan_digest
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.rolling_back import describe_rollback
from safemerge.records import MERGE_REPORT_FILE, ArtifactRef, MergeReport, StepResult
from safemerge.tracking.ledger import PipelinePlan

if TYPE_CHECKING:
    from safemerge.evaluation.suites import Suite
    from safemerge.tracking.ledger import Ledger

logger = logging.getLogger(__name__)


def open_run(context: StepContext, request: StepRequest) -> StepResult:
    """Check the config and all that it names, and open the pipeline's run in MLflow.

    Options:
        config: path of the pipeline's YAML file.
        run_key: what the scheduler calls this run.
        overrides: dotted config key to value, such as ``{"merge.quantile": 0.5}``. Any of ``merge`` switches
            ``tuning`` off: the run makes that merge, learns nothing and chooses nothing.
        adapter: URI of an adapter to evaluate and gate again instead of training one.
        fine_tuned_adapter: URI of the unrepaired adapter it came from, where it is not on record.
        promote: False lets the run judge without making what passes the champion.
        force: False skips a run whose inputs are those that the champion came of.

    Raises:
        SafemergeError: whatever is wrong with the config, the models, the data or the adapter.
    """
    from safemerge.evaluation.suites import read_suite

    options = request.options
    if not options.get("config"):
        raise ConfigError("option config: expected the path of a pipeline's YAML file, got nothing")
    overrides = _with_partners(options.get("overrides") or {})
    config = load_pipeline(Path(options["config"]), overrides=overrides)
    if any(name.startswith("merge.") for name in overrides):
        config = config.model_copy(update={"tuning": None})  # who names the merge wants no other
    check_merge(config)
    model_digests = check_models(context, config)
    suites = [read_suite(suite) for suite in config.evaluation.suites]
    data = check_data(config, suites)
    check_judges(config)
    task = check_task(config.evaluation, config.aligned_model)
    split = check_tuning(config)
    data |= tuning_digests(config, split)
    adapter, fine_tuned = _given_adapters(
        context, config, options.get("adapter"), options.get("fine_tuned_adapter")
    )
    run_key = str(options.get("run_key") or "run")
    if "'" in run_key or '"' in run_key:
        raise ConfigError(f"option run_key: expected a text without quotes, got {run_key}")
    promote = options.get("promote", True) is not False
    plan = PipelinePlan(
        pipeline=config.name,
        inputs_digest="",
        model_digests=model_digests,
        data_digests=data,
        task_digest=task,
        promote=promote,
        adapter=adapter,
        fine_tuned_adapter=fine_tuned,
    )
    plan = plan.model_copy(update={"inputs_digest": plan_digest(config, plan, suites, split)})
    if options.get("force", True) is False and promote and adapter is None:
        unchanged = nothing_new(context, config, plan)
        if unchanged is not None:
            return unchanged
    run = context.ledger.open_pipeline_run(config, plan, run_key)
    given = {"adapter": adapter, "fine_tuned_adapter": fine_tuned}
    outputs = {name: ref for name, ref in given.items() if ref is not None}
    tuning = config.tuning if adapter is None else None
    return without_run(
        "open",
        run,
        outputs=outputs,
        pipeline=config.name,
        experiment_id=run.experiment_id,
        tuning=tuning is not None,
        learning=tuning is not None and tuning.learning is not None,
    )


def nothing_new(context: StepContext, config: PipelineConfig, plan: PipelinePlan) -> StepResult | None:
    """Why there is nothing to do; None where there is something.

    The champion came of the very same inputs, or what came of them was taken back by a person.
    """
    name = config.tracking.registered_model
    found = context.ledger.find_promotion(config.tracking.experiment, plan.inputs_digest)
    champion = context.ledger.champions.current(name)
    if found is None or champion is None:
        return None
    run_id, promotion = found
    released = promotion.outputs["model_version"]
    taken_back = context.ledger.champions.withdrawn(name, released.digest)
    if taken_back is not None:
        note = (
            f"nothing new: the same inputs gave {released.uri}, which {describe_rollback(name, taken_back)}"
        )
        return StepResult(
            step="open", run_id=run_id, inputs_digest=plan.inputs_digest, figures={"note": note}
        )
    if released.uri != f"models:/{name}/{champion.version}":
        return None
    note = (
        f"nothing new: models:/{name}/{champion.version}, the champion, came of the same inputs (digest "
        f"{plan.inputs_digest[:12]}) in MLflow run {run_id}; the parameter force runs it all the same"
    )
    return StepResult(step="open", run_id=run_id, inputs_digest=plan.inputs_digest, figures={"note": note})


def check_merge(config: PipelineConfig) -> None:
    """Let a merge that could not be made fail here, not once both adapters are trained."""
    from safemerge.engine.merging import merge_options

    merge_options(config.merge)


def check_models_differ(config: PipelineConfig) -> None:
    """Check that no merge is to choose its layers by what alignment changed in one and the same model.

    Raises:
        MismatchError: one is.
    """
    from safemerge.engine.merging import merge_options
    from safemerge.engine.scores import needs_alignment
    from safemerge.engine.sweeping import candidates

    if config.aligned_model != config.unaligned_model:
        return
    merges = [merge_options(config.merge)]
    if config.tuning is not None:  # what is learned starts from the configured merge
        starts = merges if config.tuning.learning else []
        merges = [*candidates(config.tuning.known_grid).values(), *starts]
    if any(map(needs_alignment, merges)):
        raise MismatchError(
            "expected an aligned model and the same before it was aligned, got "
            f"{config.aligned_model} for both: no layer would be merged"
        )


def check_models(context: StepContext, config: PipelineConfig) -> dict[str, str]:
    """The digest of both models, once they are known to be there and of one architecture."""
    from safemerge.pipeline.models import model_digest
    from safemerge.storage.checkpoints import Checkpoint, check_same_architecture
    from safemerge.storage.hub import resolve

    check_models_differ(config)
    models = {
        role: Checkpoint.open(resolve(getattr(config, role), here=False))
        for role in ("aligned_model", "unaligned_model")
    }
    check_same_architecture(models["aligned_model"], models["unaligned_model"])
    return {role: model_digest(model, context.workspace.home) for role, model in models.items()}


def check_data(config: PipelineConfig, suites: Sequence[Suite]) -> dict[str, str]:
    """The digest of every data set and suite, once all rows are known to be well formed.

    Args:
        config: the pipeline's.
        suites: those of ``evaluation``, as read.

    Raises:
        SafemergeError: rows are not; or the gate's policy can never be decided on so few prompts.
    """
    from safemerge.evaluation.suites import repeated_prompts, size
    from safemerge.training.data import data_digest, load_examples

    digests = {
        "task_training": data_digest(load_examples(config.task_training.data)),
        "safety_training": data_digest(load_examples(config.safety_training.data)),
    }
    digests |= {f"suite {suite.name}": suite.digest() for suite in suites}
    sizes = [size(suite) for suite in suites]
    check_suites(config.gate, sizes)
    check_decidable(config.gate, sizes)
    for problem in repeated_prompts(suites):
        logger.warning("%s", problem)
    return digests


def check_judges(config: PipelineConfig) -> None:
    """Check that the judges' models are pinned, or are folders that can be read."""
    from safemerge.evaluation.judges import make_judges

    make_judges(config.evaluation)


def check_tuning(config: PipelineConfig) -> list[Suite]:
    """The suites that the choice of a merge sees, once it is known that nothing else sees them.

    Raises:
        SafemergeError: candidates cannot be made, or the development split cannot be used.
    """
    if config.tuning is None:
        return []
    from safemerge.engine.race import check_unseen
    from safemerge.engine.sweeping import candidates

    candidates(config.tuning.known_grid)
    if config.tuning.learning is not None:
        from safemerge.engine.learning import check_learning

        check_learning(config)
    return check_unseen(config)


def tuning_digests(config: PipelineConfig, split: Sequence[Suite]) -> dict[str, str]:
    """The digest of every suite and utility task that the choice of a merge sees."""
    if config.tuning is None:
        return {}
    from safemerge.engine.race import scorings

    digests = {f"tuning suite {suite.name}": suite.digest() for suite in split}
    for number, limit in scorings(config.tuning).items():
        utility = config.tuning.utility.model_copy(update={"limit": limit})
        evaluation = config.evaluation.model_copy(update={"utility": utility})
        digests[f"{TUNING_TASK} {number}"] = check_task(evaluation, config.aligned_model)
    return digests


def check_task(evaluation: EvaluationConfig, aligned_model: str) -> str:
    """The digest of the utility task, once lm-eval is known to have it, its metric and its documents."""
    from safemerge.evaluation import utility
    from safemerge.evaluation.libraries import check_libraries
    from safemerge.storage.hub import resolve

    check_libraries(evaluation.engine)
    task = evaluation.utility
    model = resolve(aligned_model, here=False)
    utility.check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(model))
    return utility.task_digest(task, model)


def _with_partners(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which one of several settings of the merge that go together clears those not given."""
    prefix = "merge."
    merge = {name.removeprefix(prefix): value for name, value in overrides.items() if name.startswith(prefix)}
    cleared = {f"{prefix}{name}": value for name, value in with_partners_cleared(merge).items()}
    return {**overrides, **cleared}


def _given_adapters(
    context: StepContext, config: PipelineConfig, adapter: str | None, fine_tuned: str | None
) -> tuple[ArtifactRef | None, ArtifactRef | None]:
    """The adapter to judge again, and the unrepaired one it came from.

    The second is found by digest: a merged adapter's report names its task adapter, and
    an adapter that a training step wrote is itself unrepaired.
    """
    if not adapter:
        if fine_tuned:
            raise ConfigError("option fine_tuned_adapter: expected an option adapter beside it, got none")
        return None, None
    given = _reference(context, adapter)
    if fine_tuned:
        return given, _reference(context, fine_tuned)
    folder = context.ledger.fetch(given.uri, context.workspace.cache)
    report = folder / MERGE_REPORT_FILE
    origin = MergeReport.read(report).digests["task_adapter"] if report.exists() else given.digest
    trained = _trained_adapter(context.ledger, config, origin)
    if trained is None:
        logger.warning(
            "no training of the unrepaired adapter %s is on record: gain kept cannot be judged", origin[:12]
        )
    return given, trained


def _reference(context: StepContext, uri: str) -> ArtifactRef:
    from safemerge.storage.adapters import adapter_digest, read_adapter

    pinned = context.ledger.pin(uri)
    folder = context.ledger.fetch(pinned, context.workspace.cache)
    read_adapter(folder)
    return ArtifactRef(uri=pinned, digest=adapter_digest(folder))


def _trained_adapter(ledger: Ledger, config: PipelineConfig, digest: str) -> ArtifactRef | None:
    return ledger.find_output(config.tracking.experiment, "train", "adapter", digest)
