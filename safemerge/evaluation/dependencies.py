"""What figures depend on, said once for all that ask whether some are there already.

Reports are found by :func:`report_dependencies`, wherever they were measured. What an unfinished evaluation
has kept of an arm is found by :func:`arm_dependencies`, which adds where: another device moves a figure by
rounding, and one evaluation is not to mix the answers of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.places import without_places
from safemerge.evaluation.engines import Arm
from safemerge.evaluation.judges.base import Judge
from safemerge.evaluation.libraries import check_libraries, versions
from safemerge.evaluation.suites import Suite
from safemerge.gate import STOP_LIMITS, GatePolicy
from safemerge.records import SuiteKind


def report_dependencies(
    settings: EvaluationConfig,
    suites: Iterable[Suite],
    judges: Mapping[SuiteKind, Judge],
    *,
    model_digest: str,
    adapter_digest: str | None,
    task_digest: str | None,
    policy: GatePolicy | None = None,
) -> dict[str, JsonValue]:
    """What the report of an arm depends on, whatever the arm is called.

    Args:
        settings: what is measured.
        suites: its suites, as read.
        judges: its judges, by kind of suite.
        model_digest: sha256 of the aligned model.
        adapter_digest: sha256 of the adapter; None for the model alone.
        task_digest: sha256 of the utility task; None where utility is not measured.
        policy: the gate's, where suites may be stopped early.

    Raises:
        MissingDependencyError: a library whose version counts is not installed.
    """
    check_libraries(settings.engine)
    # Suites, task and guards count by what they hold, not by where that lies.
    left_out = {"suites"} if task_digest is not None else {"suites", "utility"}
    counted = {name: value for name, value in without_places(settings).items() if name not in left_out}
    limits = None
    if policy and settings.sequential:
        limits = policy.model_dump(mode="json", include=set(STOP_LIMITS))
    return {
        "model": model_digest,
        "adapter": adapter_digest,
        "suites": {suite.name: [suite.kind, suite.digest()] for suite in suites},
        "judges": {kind: judge.record.model_dump(mode="json") for kind, judge in judges.items()},
        "task": task_digest,
        "settings": counted,
        "limits": limits,
        "versions": {**versions(settings.engine)},
    }


def arm_dependencies(
    settings: EvaluationConfig, arm: Arm, name: str, *, model_digest: str, adapter_digest: str | None
) -> dict[str, JsonValue]:
    """What all that a loaded arm gives depends on, beside what it is asked.

    Args:
        settings: what is measured.
        arm: the arm.
        name: its name.
        model_digest: sha256 of the aligned model.
        adapter_digest: sha256 of its adapter; None for the model alone.
    """
    served_as = settings.endpoint.models[name] if settings.endpoint else None
    return {
        "model": model_digest,
        "adapter": adapter_digest,
        "served_as": served_as,
        **generation_protocol(settings, arm),
        **measured_on(settings, arm),
    }


def generation_protocol(settings: EvaluationConfig, arm: Arm) -> dict[str, JsonValue]:
    """How answers are generated: figures of different protocols are not compared."""
    protocol: dict[str, JsonValue] = {
        "engine": arm.engine,
        "decoding": "greedy",
        "max_new_tokens": settings.generation.max_new_tokens,
    }
    return protocol | ({"request": settings.endpoint.request} if settings.endpoint else {})


def measured_on(settings: EvaluationConfig, arm: Arm) -> dict[str, str]:
    """Where an arm is measured: device, number format, library versions, and the server if there is one."""
    server = {"endpoint": settings.endpoint.url} if settings.endpoint else {}
    return {"device": arm.device, "dtype": arm.dtype, **versions(settings.engine), **server}
