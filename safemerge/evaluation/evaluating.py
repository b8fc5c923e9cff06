"""Measure arms of one model: load it once, let each arm answer and score its task, unload, then judge.

The model is gone before a judge is loaded, so that the two never share a device's memory, and each
judge is loaded once for all arms. With a work folder, all that took long is kept there as it comes
(:mod:`safemerge.evaluation.journal`), so that a killed evaluation goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from safemerge.config.evaluation import EvaluationConfig
from safemerge.evaluation.dependencies import arm_dependencies, generation_protocol, measured_on
from safemerge.evaluation.engines import Arm, load
from safemerge.evaluation.generation import answer_batches
from safemerge.evaluation.harm import JudgedSuite, Row, judge_suite
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges import Judge, check_keys, make_judges
from safemerge.evaluation.judges.local import free_memory
from safemerge.evaluation.libraries import check_libraries
from safemerge.evaluation.stopping import Stopping, answers_until_settled, stoppings
from safemerge.evaluation.suites import ChatFormat, Suite, read_suite
from safemerge.evaluation.utility import check_task, measure_utility, task_digest
from safemerge.gate import GatePolicy
from safemerge.records import EvaluationReport, SuiteKind, UtilityReport, json_digest


class Evaluation(NamedTuple):
    """An arm's figures, and the texts that they rest on."""

    report: EvaluationReport
    rows: list[Row]
    """One a prompt: suite, kind, id, category, prompt, response, flag."""


class _Measured(NamedTuple):
    """What the loaded model gave."""

    answers: dict[str, dict[str, str]]
    """Suite to prompt id to answer."""
    utility: UtilityReport | None
    protocol: dict[str, JsonValue]
    measured_on: dict[str, str]


def evaluate_arm(
    model: Path,
    adapter: Path | None,
    arm: str,
    settings: EvaluationConfig,
    *,
    model_digest: str,
    adapter_digest: str | None,
    policy: GatePolicy | None = None,
    work: Path | None = None,
    with_utility: bool = True,
) -> Evaluation:
    """Measure a model, alone or with an adapter on it: :func:`evaluate_arms` of one arm.

    Args:
        model: folder of the aligned model.
        adapter: folder of the adapter; None for the model itself.
        arm: name in the report.
        settings: as for :func:`evaluate_arms`, and so down to ``with_utility``.
        model_digest: sha256 of the model.
        adapter_digest: sha256 of the adapter.
        policy: the gate's, where suites may be stopped early.
        work: folder for what is unfinished.
        with_utility: False asks the suites alone.
    """
    return evaluate_arms(
        model,
        {arm: adapter},
        settings,
        model_digest=model_digest,
        adapter_digests={arm: adapter_digest},
        policy=policy,
        work=work,
        with_utility=with_utility,
    )[arm]


def evaluate_arms(
    model: Path,
    adapters: Mapping[str, Path | None],
    settings: EvaluationConfig,
    *,
    model_digest: str,
    adapter_digests: Mapping[str, str | None],
    policy: GatePolicy | None = None,
    work: Path | None = None,
    with_utility: bool = True,
) -> dict[str, Evaluation]:
    """Measure a model with each of several adapters on it; every arm's figures are those it has alone.

    All that can be wrong with suites, judge and task names is found before the model is loaded, and
    all that can be wrong with adapters before the first arm is asked.

    Args:
        model: folder of the aligned model.
        adapters: name of an arm to its adapter's folder; None for the model itself.
        settings: what is measured; paths in it count from the working directory.
        model_digest: sha256 of the model.
        adapter_digests: name of an arm to the sha256 of its adapter; None for the model itself.
        policy: the gate's, whose limits say when a suite may be stopped early (``settings.sequential``).
        work: folder in which answers and flags are kept as they come. A later call with it repeats only
            what it lacks, and gives the same reports; the caller deletes it. None keeps nothing.
        with_utility: False asks the suites alone.

    Returns:
        Name of an arm to its evaluation, in the order of ``adapters``.

    Raises:
        ConfigError: a judge's model is not pinned; suites should be stopped early and the policy is missing,
            or has rules that need whole ones; the server of the engine ``endpoint`` is given no name of an
            arm; or a server is given no key.
        MissingDependencyError: transformers, peft, lm_eval or the engine is not installed.
        DataError: a suite cannot be read, or holds other prompts than it says.
        EvaluationError: a task is unknown or fails, a prompt does not fit the model, or a judge
            gives no verdict on an answer.
        CheckpointError: the model cannot be loaded.
        AdapterError: an adapter cannot be read.
        NonFiniteError: an adapter holds NaN or infinity.
        MismatchError: an adapter belongs to another model.
    """
    check_libraries(settings.engine)
    suites = [read_suite(suite) for suite in settings.suites]
    judges = make_judges(settings)
    check_keys(judges.values())
    early = stoppings(suites, settings.sequential, policy, settings.generation.batch_size)
    task = settings.utility
    if with_utility:
        check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(model))
    journal = Journal(work)
    loaded = load(settings, model, adapters, with_utility=with_utility)
    measured = {}
    for name in adapters:
        with loaded.arm(name) as arm:
            depends_on = arm_dependencies(
                settings, arm, name, model_digest=model_digest, adapter_digest=adapter_digests[name]
            )
            asking = _Asking(arm, name, settings, journal, depends_on)
            measured[name] = _Measured(
                _answers(asking, suites, judges, early),
                _utility(asking, model) if with_utility else None,
                generation_protocol(settings, arm),
                measured_on(settings, arm),
            )
    del asking, arm, loaded
    free_memory()
    judged = _judge(suites, judges, measured, early, journal)
    return {
        name: Evaluation(
            EvaluationReport(
                arm=name,
                adapter_digest=adapter_digests[name],
                model_digest=model_digest,
                utility=found.utility,
                suites=tuple(judged[name, suite.name].report for suite in suites),
                served_as=settings.endpoint.models[name] if settings.endpoint else None,
                settings={
                    "generation_batch_size": settings.generation.batch_size,
                    "utility_batch_size": task.batch_size,
                    **found.measured_on,
                },
            ),
            [row for suite in suites for row in judged[name, suite.name].rows],
        )
        for name, found in measured.items()
    }


class _Asking(NamedTuple):
    """An arm at work."""

    arm: Arm
    name: str
    settings: EvaluationConfig
    journal: Journal
    depends_on: Mapping[str, JsonValue]
    """What its answers and its utility depend on beside what is asked and how."""


def _answers(
    it: _Asking, suites: list[Suite], judges: Mapping[SuiteKind, Judge], early: Mapping[str, Stopping]
) -> dict[str, dict[str, str]]:
    """An arm's answers to every suite, or to as much of it as is needed."""

    def ask(prompts: Mapping[str, str], label: str, chat: ChatFormat) -> dict[str, str]:
        batches = answer_batches(
            it.arm, prompts, chat, it.settings.generation, f"{it.name}: {label}", it.journal, it.depends_on
        )
        return {prompt_id: text for batch in batches for prompt_id, text in batch.items()}

    found = {
        suite.name: answers_until_settled(
            suite, early[suite.name], judges[suite.kind], it.journal, partial(ask, chat=suite.chat)
        )
        for suite in suites
        if suite.name in early
    }
    # Suites that are asked to their end share batches, which are then full: small ones cost as much.
    whole = [suite for suite in suites if suite.name not in early]
    for chat in dict.fromkeys(suite.chat for suite in whole):
        alike = [suite for suite in whole if suite.chat == chat]
        prompts = {f"{suite.name}/{prompt.id}": prompt.text for suite in alike for prompt in suite.prompts}
        label = alike[0].name if len(alike) == 1 else f"{len(alike)} suites"
        answers = ask(prompts, label, chat)
        found |= {
            suite.name: {prompt.id: answers[f"{suite.name}/{prompt.id}"] for prompt in suite.prompts}
            for suite in alike
        }
    return found


def _utility(it: _Asking, model: Path) -> UtilityReport:
    """The arm's utility, from the journal where the task asks what it asked then."""
    task = it.settings.utility
    key = json_digest({"utility": task.model_dump(mode="json"), "depends_on": dict(it.depends_on)})
    if (kept := it.journal.get(key)) is not None:
        report = UtilityReport.model_validate(kept)
        if report.task_digest == task_digest(task, model):
            return report
    report = measure_utility(
        it.arm,
        task=task.task,
        metric=task.metric,
        include_path=task.include_path,
        metric_filter=task.filter,
        num_fewshot=task.num_fewshot,
        limit=task.limit,
        batch_size=task.batch_size,
        apply_chat_template=task.apply_chat_template,
    )
    it.journal.put(key, report.model_dump(mode="json"))
    return report


def _judge(
    suites: list[Suite],
    judges: Mapping[SuiteKind, Judge],
    measured: Mapping[str, _Measured],
    early: Mapping[str, Stopping],
    journal: Journal,
) -> dict[tuple[str, str], JudgedSuite]:
    """Arm and suite to its judged answers; one judge after the other, each freed after its last suite."""
    judged = {}
    for judge in {id(judge): judge for judge in judges.values()}.values():
        for suite in suites:
            if judges[suite.kind] is not judge:
                continue
            for name, found in measured.items():
                answers, stopping = found.answers[suite.name], early.get(suite.name)
                stopped = stopping.stopped(len(answers)) if stopping else None
                judged[name, suite.name] = judge_suite(
                    suite, answers, judge, found.protocol, journal, stopped
                )
        judge.release()
    return judged
