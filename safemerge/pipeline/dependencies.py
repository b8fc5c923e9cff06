"""What the outcome of a run depends on, said once: a step's digest is of its part, a plan's of all parts.

What is known when a run is opened, such as settings, data, models, judges and libraries, is said by a
function here, which the step calls, and so does :func:`plan_digest`. What earlier steps have made follows
from that; a step gives it to :func:`inputs_digest` itself. So whatever makes a step do its work again also
keeps a run from being skipped as nothing new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.config.merge import MergeConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.places import without_places
from safemerge.config.tuning import TuningConfig
from safemerge.gate import GatePolicy
from safemerge.records import ArtifactRef, SuiteKind, json_digest
from safemerge.tracking.ledger import PipelinePlan

if TYPE_CHECKING:
    from safemerge.evaluation.judges import Judge
    from safemerge.evaluation.suites import Suite

Parts = dict[str, Any]
"""Plain values: settings and digests, by name."""

REVISIONS = {
    "train": 1,
    "learn": 2,
    "propose": 1,
    "tune_evaluate": 1,
    "choose": 1,
    "merge": 1,
    "evaluate": 2,
    "gate": 4,
    "promote": 1,
}
"""Raised when a step's outputs change though its inputs do not. Steps that are missing are not found again by
their inputs: ``open``, ``advance``, ``ask`` and ``close`` are done anew."""

LIBRARIES = {
    "train": ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"),
    "learn": ("torch", "transformers"),
    "propose": ("torch",),
    "choose": ("numpy",),
    "merge": ("torch",),
    "gate": ("numpy",),
}
"""Packages whose version may change a step's outputs, installed or not. Those of a measurement stand in
:mod:`safemerge.evaluation.dependencies`."""

TUNING_TASK = "tuning task of round"
"""Key of the development split's utility task among the data's digests."""


def inputs_digest(step: str, known: Mapping[str, Any], **made: Any) -> str:
    """The sha256 of everything that a step's outputs depend on.

    Args:
        step: name of the step.
        known: what was known when the run was opened: from a function of this module, whole.
        made: digests of what earlier steps have made, and what was found since, such as the champion.
    """
    versions = {name: _version(name) for name in LIBRARIES.get(step, ())}
    return json_digest({"step": step, "revision": REVISIONS[step], "versions": versions, **known, **made})


def plan_digest(
    config: PipelineConfig, plan: PipelinePlan, suites: Iterable[Suite], split: Iterable[Suite] = ()
) -> str:
    """The sha256 of everything that a run's outcome depends on, but for the champion of the day.

    Args:
        config: the pipeline's.
        plan: what the run is to be opened with; its own digest does not count.
        suites: those of ``evaluation``, as read.
        split: those of ``tuning``, as read.
    """
    from safemerge.evaluation.judges import make_judges

    measured, tuning = config.evaluation, config.tuning
    figures = measuring(measured, plan, config.gate, suites, make_judges(measured), plan.task_digest)
    steps = {
        "train_safety_adapter": inputs_digest("train", training(config, plan, "safety")),
        "train_task_adapter": inputs_digest("train", training(config, plan, "task")),
        "merge": inputs_digest("merge", merging(config.merge, plan)),
        "evaluate": inputs_digest("evaluate", figures),
        "gate": inputs_digest("gate", judging(config, plan)),
        "promote": inputs_digest("promote", promoting(config)),
    }
    if tuning is not None:
        # Of the utility tasks, the digests stand in the plan and the settings in those of the choice.
        every_round = measured.model_copy(update={"suites": tuning.suites, "sequential": None})
        figures = measuring(every_round, plan, config.gate, split, make_judges(every_round), None)
        steps |= {
            "propose": inputs_digest("propose", proposing(tuning.grid, plan)),
            "tune_evaluate": inputs_digest("tune_evaluate", figures),
            "choose": inputs_digest("choose", choosing(tuning)),
        }
        if tuning.learning is not None:
            steps["learn"] = inputs_digest("learn", learning(config, plan, tuning.learning))
    given = {"adapter": {"uri"}, "fine_tuned_adapter": {"uri"}}
    opened = plan.model_dump(mode="json", exclude={"inputs_digest": True, **given})
    return json_digest({"plan": opened, "steps": steps})


# --- the steps' parts --------------------------------------------------------------------


def training(config: PipelineConfig, plan: PipelinePlan, role: str) -> Parts:
    """What the adapter of a role, ``task`` or ``safety``, depends on."""
    settings = config.training_of(role)
    return {
        "model": plan.model_digests["aligned_model"],
        "data": plan.data_digests[f"{role}_training"],
        "settings": settings.model_dump(mode="json", exclude={"data", "save_every_steps"}),
    }


def learning(config: PipelineConfig, plan: PipelinePlan, fit: LearningConfig) -> Parts:
    """What fitted coefficients depend on."""
    from safemerge.engine.merging import digested_settings

    return {
        "models": plan.model_digests,
        "data": {name: plan.data_digests[name] for name in ("task_training", "safety_training")},
        "start": digested_settings(config.merge),
        "settings": fit.model_dump(mode="json"),
    }


def proposing(grid: SweepGrid, plan: PipelinePlan) -> Parts:
    """What the candidates of a grid depend on; of coefficients name and content, not where they lie."""
    from safemerge.engine.coefficient_files import read_coefficients
    from safemerge.engine.sweeping import files_by_candidate

    files = files_by_candidate(grid)
    return {
        "models": plan.model_digests,
        "grid": grid.model_dump(mode="json", exclude={"coefficients"}),
        "coefficients": {name: [file.name, read_coefficients(file).digest] for name, file in files.items()},
    }


def choosing(tuning: TuningConfig) -> Parts:
    """What a choice depends on beside its candidates and what was measured of them; no places."""
    return {"tuning": without_places(tuning)}


def merging(merge: MergeConfig, plan: PipelinePlan) -> Parts:
    """What a merge and its controls depend on: the merge as configured, or as chosen."""
    from safemerge.engine.merging import digested_settings

    return {"models": plan.model_digests, "settings": digested_settings(merge)}


def measuring(
    settings: EvaluationConfig,
    plan: PipelinePlan,
    policy: GatePolicy,
    suites: Iterable[Suite],
    judges: Mapping[SuiteKind, Judge],
    task_digest: str | None,
    adapter: ArtifactRef | None = None,
) -> Parts:
    """What an arm's figures depend on, the adapter included, which reports are found by, wherever measured.

    Args:
        settings: what is measured.
        plan: what the run was opened with.
        policy: the gate's.
        suites: those of ``settings``, as read.
        judges: those of ``settings``, by kind of suite.
        task_digest: sha256 of the utility task; None where utility is not measured.
        adapter: the arm's; None for the aligned model, and where a plan is made, as no step has made any.
    """
    from safemerge.evaluation.dependencies import report_dependencies

    found = report_dependencies(
        settings,
        suites,
        judges,
        model_digest=plan.model_digests["aligned_model"],
        adapter_digest=adapter.digest if adapter else None,
        task_digest=task_digest,
        policy=policy,
    )
    return {"evaluation": found}


def judging(config: PipelineConfig, plan: PipelinePlan) -> Parts:
    """What a verdict depends on beside adapter, reports and champion."""
    return {"policy": config.gate.model_dump(mode="json"), "given": plan.adapter is not None}


def promoting(config: PipelineConfig) -> Parts:
    """What a release depends on beside the adapter, the verdict and what a person said."""
    return {"name": config.tracking.registered_model}


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
