"""Measure one arm: load it once, let it answer every suite and score its task, unload it, then judge.

The arm is gone before a judge is loaded, so that the two never share a device's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from safemerge.config.models import Engine, EvaluationConfig
from safemerge.evaluation.generation import Arm, generate, load_arm
from safemerge.evaluation.harm import Row, judge_suite
from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.judges.local import free_memory
from safemerge.evaluation.libraries import check_libraries, versions
from safemerge.evaluation.suites import read_suite
from safemerge.evaluation.utility import check_task, measure_utility
from safemerge.evaluation.vllm_arm import generate_with_vllm, load_vllm_arm
from safemerge.records import EvaluationReport


class Evaluation(NamedTuple):
    """An arm's figures, and the texts that they rest on."""

    report: EvaluationReport
    rows: list[Row]
    """One a prompt: suite, kind, id, category, prompt, response, flag."""


def evaluate_arm(
    model: Path,
    adapter: Path | None,
    arm: str,
    settings: EvaluationConfig,
    *,
    model_digest: str,
    adapter_digest: str | None,
) -> Evaluation:
    """Measure a model, alone or with an adapter on it.

    All that can be wrong with suites, judge and task names is found before the model is loaded.

    Args:
        model: folder of the aligned model.
        adapter: folder of the adapter; None for the model itself.
        arm: name in the report.
        settings: what is measured; paths in it count from the working directory.
        model_digest: sha256 of the model.
        adapter_digest: sha256 of the adapter.

    Raises:
        ConfigError: a judge's model is not pinned.
        MissingDependencyError: transformers, peft, lm_eval or the engine is not installed.
        DataError: a suite cannot be read, or holds other prompts than it says.
        EvaluationError: a task is unknown or fails, a prompt does not fit the model, or a judge
            gives no verdict on an answer.
        CheckpointError: the model cannot be loaded.
        AdapterError: the adapter cannot be read.
        NonFiniteError: the adapter holds NaN or infinity.
        MismatchError: the adapter belongs to another model.
    """
    check_libraries(settings.engine)
    suites = [read_suite(suite) for suite in settings.suites]
    judges = make_judges(settings)
    task = settings.utility
    check_task(task.task, task.metric, task.include_path, task.filter, tokenizer=str(model))
    loaded = (load_vllm_arm if settings.engine is Engine.VLLM else load_arm)(model, adapter)

    generation = settings.generation
    protocol: dict[str, JsonValue] = {
        "engine": loaded.engine,
        "decoding": "greedy",
        "max_new_tokens": generation.max_new_tokens,
    }
    answered = []
    for suite in suites:
        prompts = {prompt.id: prompt.text for prompt in suite.prompts}
        label = f"{arm}: {suite.name}"
        if isinstance(loaded, Arm):
            responses = generate(
                loaded,
                prompts,
                max_new_tokens=generation.max_new_tokens,
                batch_size=generation.batch_size,
                label=label,
                chat=suite.chat,
            )
        else:
            responses = generate_with_vllm(
                loaded, prompts, max_new_tokens=generation.max_new_tokens, label=label, chat=suite.chat
            )
        answered.append((suite, responses))
    utility = measure_utility(
        loaded,
        task=task.task,
        metric=task.metric,
        include_path=task.include_path,
        metric_filter=task.filter,
        num_fewshot=task.num_fewshot,
        limit=task.limit,
        batch_size=task.batch_size,
        apply_chat_template=task.apply_chat_template,
    )
    place: dict[str, str] = {"device": loaded.device, "dtype": loaded.dtype}
    del loaded
    free_memory()
    judged = [judge_suite(suite, responses, judges[suite.kind], protocol) for suite, responses in answered]
    for judge in judges.values():
        judge.release()
    report = EvaluationReport(
        arm=arm,
        adapter_digest=adapter_digest,
        model_digest=model_digest,
        utility=utility,
        suites=tuple(result.report for result in judged),
        settings={
            "generation_batch_size": generation.batch_size,
            "utility_batch_size": task.batch_size,
            **place,
            **versions(settings.engine),
        },
    )
    return Evaluation(report, [row for result in judged for row in result.rows])
