"""Task utility through lm-eval: any of its tasks, or a task folder of the user's.

lm-eval's own figures are taken as they are; its bootstrap is left out, as intervals of
differences between arms are ours (:mod:`safemerge.stats`).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from safemerge.config.evaluation import UtilityConfig
from safemerge.errors import EvaluationError
from safemerge.evaluation.engines import Arm
from safemerge.evaluation.lm import lm_eval_log_level
from safemerge.records import UtilityReport

SEED = 1234
"""Seed of few-shot examples and of sampling tasks; lm-eval's default."""

logger = logging.getLogger(__name__)


def check_task(
    task: str,
    metric: str,
    include_path: str | Path | None = None,
    metric_filter: str = "none",
    tokenizer: str | None = None,
) -> None:
    """Check a task's names without loading its documents.

    Args:
        task: an lm-eval task or group.
        metric: one of its metrics.
        include_path: folder with the user's own tasks.
        metric_filter: one of its filters.
        tokenizer: folder of the tokenizer, where the task is measured in this process too.

    Raises:
        EvaluationError: lm-eval has no such task, or the task no such metric or filter, of which the
            nearest names are given; or its config cannot be read, or one of a folder that seems to lack
            the task.
    """
    with _errors_of(task):
        _check_names(_task_manager(task, include_path, tokenizer), task, metric, metric_filter)


def task_digest(asked: UtilityConfig, tokenizer: Path) -> str:
    """The sha256 of what a task asks: its resolved config, the code it names, and its documents.

    Args:
        asked: the task, its examples in the prompt, its limit, and whether prompts are wrapped as chat
            turns.
        tokenizer: folder of the model to be evaluated; tasks may measure documents in its tokens.

    Raises:
        EvaluationError: the task cannot be found or its documents cannot be read.
    """
    with _errors_of(asked.task):
        manager = _task_manager(asked.task, asked.include_path, str(tokenizer))
        tasks = _load(manager, asked.task, asked.num_fewshot)["tasks"]
        return _task_digest(tasks, asked.limit, asked.apply_chat_template)


def output_types(task: str, tokenizer: Path, include_path: str | Path | None = None) -> set[str]:
    """What a task, or those of a group, ask of a model: ``generate_until``, ``loglikelihood``, ….

    Args:
        task: an lm-eval task or group.
        tokenizer: folder of the model to be evaluated.
        include_path: folder with the user's own tasks.

    Raises:
        EvaluationError: the task cannot be found or its documents cannot be read.
    """
    with _errors_of(task):
        manager = _task_manager(task, include_path, str(tokenizer))
        return {str(leaf.OUTPUT_TYPE) for leaf in _load(manager, task, None)["tasks"].values()}


def measure_utility(
    arm: Arm,
    *,
    task: str,
    metric: str,
    include_path: str | Path | None = None,
    metric_filter: str = "none",
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    apply_chat_template: bool = True,
) -> UtilityReport:
    """Measure one task and metric.

    A task that makes its documents by code (``custom_dataset``) is given the folder of the
    tokenizer as ``tokenizer`` and ``pretrained``, as lm-eval's command line does.

    Args:
        arm: what is measured.
        task: an lm-eval task, or a group that aggregates its tasks.
        metric: one of its metrics.
        include_path: folder with the user's own tasks.
        metric_filter: lm-eval filter whose result counts.
        num_fewshot: examples in the prompt; None for the task's own number.
        limit: use the first so many documents.
        batch_size: requests scored at once; halved where memory runs out. vLLM forms its own batches.
        apply_chat_template: whether prompts are wrapped as chat turns.

    Raises:
        EvaluationError: the task cannot be found, loaded or run, or its metric has no direction.
    """
    with _errors_of(task):
        manager = _task_manager(task, include_path, str(arm.tokenizer.name_or_path))
        _check_names(manager, task, metric, metric_filter)
        loaded = _load(manager, task, num_fewshot)
        results = _run(arm, loaded, task, limit, batch_size, apply_chat_template)
    higher_is_better = results["higher_is_better"].get(task, {}).get(metric)
    if not isinstance(higher_is_better, bool):
        raise EvaluationError(
            f"task {task}, metric {metric}: expected higher_is_better to be true or false, "
            f"got {higher_is_better!r}"
        )
    value = _finite(results["results"].get(task, {}).get(f"{metric},{metric_filter}"))
    return UtilityReport(
        task=task,
        metric=metric,
        higher_is_better=higher_is_better,
        value=value,
        scores=_scores(results["samples"], task, metric, metric_filter, value),
        task_digest=_task_digest(loaded["tasks"], limit, apply_chat_template),
        protocol={
            "engine": arm.engine,
            "filter": metric_filter,
            # As it came out: a number that was asked for may be the task's own anyway.
            "num_fewshot": sorted({leaf.get_config("num_fewshot") for leaf in loaded["tasks"].values()}),
            "chat_template": apply_chat_template,
            "limit": limit,
            "seed": SEED,
        },
    )


def _task_manager(task: str, include_path: str | Path | None, tokenizer: str | None) -> Any:
    """The manager that knows the task; lm-eval's own thousands are read only where they are needed."""
    if include_path is None:
        return _all_tasks(None, tokenizer)
    if not Path(include_path).is_dir():
        raise EvaluationError(f"{include_path}: expected a folder with lm-eval tasks, got none")
    own = _manager(str(include_path), tokenizer, include_defaults=False)
    if task in own.all_subtasks:
        return own
    if task not in own.task_index:
        _check_readable(task, Path(include_path))
    return _all_tasks(str(include_path), tokenizer)


def _check_readable(task: str, folder: Path) -> None:
    """Refuse files that lm-eval leaves out without a word: the task may be in one, and not lm-eval's own."""
    from lm_eval.tasks._yaml_loader import load_yaml

    problems = []
    for path in sorted(folder.rglob("*.yaml")):
        if ".ipynb_checkpoints" in path.parts:
            continue  # as lm-eval does
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:
            problems.append(f"{path}: {' '.join(str(error).split())}")
    if problems:
        raise EvaluationError(f"task {task}: expected files that lm-eval can read, got {'; '.join(problems)}")


@functools.lru_cache(maxsize=2)
def _all_tasks(include_path: str | None, tokenizer: str | None) -> Any:
    """All of lm-eval's tasks beside the user's; kept, as reading them takes seconds.

    Two are kept, so that a folder which lacks its task does not drive out what recipes without a folder need.
    """
    return _manager(include_path, tokenizer, include_defaults=True)


def _manager(include_path: str | None, tokenizer: str | None, *, include_defaults: bool) -> Any:
    from lm_eval.tasks import TaskManager

    metadata = {"tokenizer": tokenizer, "pretrained": tokenizer} if tokenizer else {}
    return TaskManager(include_path=include_path, include_defaults=include_defaults, metadata=metadata)


def _load(manager: Any, task: str, num_fewshot: int | None) -> Any:
    """The task, or a group's tasks, with the number of examples in the prompt set."""
    with lm_eval_log_level(logging.ERROR):
        loaded = manager.load([task])
    for leaf in loaded["tasks"].values():
        _set_fewshot(leaf, num_fewshot)
    return loaded


def _check_names(manager: Any, task: str, metric: str, metric_filter: str) -> None:
    entry = manager.task_index.get(task)
    if entry is None:
        raise EvaluationError(f"expected an lm-eval task, got {task!r}{_nearest(task, manager.all_tasks)}")
    if entry.kind.name == "TAG":
        raise EvaluationError(
            f"expected an lm-eval task, got {task!r}, a tag of several: name one of "
            f"{', '.join(sorted(entry.tags))}"
        )
    if entry.kind.name == "PY_TASK":
        return  # written in Python: known only once it runs
    metrics, filters = _names(task, entry.cfg, group=entry.kind.name == "GROUP")
    if metric not in metrics:
        raise EvaluationError(
            f"task {task}: expected one of its metrics ({', '.join(metrics) or 'it has none'}), "
            f"got {metric!r}{_nearest(metric, metrics)}"
        )
    if filters and metric_filter not in filters:
        raise EvaluationError(
            f"task {task}: expected one of its filters ({', '.join(filters)}), "
            f"got {metric_filter!r}{_nearest(metric_filter, filters)}"
        )


def _names(task: str, config: Mapping[str, Any], group: bool) -> tuple[list[str], list[str]]:
    """Metrics and filters of a task or group; no filters where they depend on a group's tasks."""
    if group:
        tasks = config.get("task")
        if not isinstance(tasks, list) or not tasks:
            raise EvaluationError(f"task {task}: expected a list of the group's tasks, got {tasks!r}")
        given = config.get("aggregate_metric_list") or []
        items = [given] if isinstance(given, dict) else given
        return _listed(task, "aggregate_metric_list", items, "metric"), []
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    given, output_type = config.get("metric_list"), config.get("output_type", "generate_until")
    if output_type not in list(DEFAULT_METRIC_REGISTRY):
        known = ", ".join(DEFAULT_METRIC_REGISTRY)
        raise EvaluationError(
            f"task {task}: expected its output_type to be one of {known}, got {output_type!r}"
        )
    # A metric that is a function is named by its path here, "<folder>/<module>.<name>".
    metrics = (
        list(DEFAULT_METRIC_REGISTRY[output_type])
        if given is None
        else [name.rsplit(".", 1)[-1] for name in _listed(task, "metric_list", given, "metric")]
    )
    return metrics, _listed(task, "filter_list", config.get("filter_list") or [{"name": "none"}], "name")


def _listed(task: str, key: str, items: Sequence[Any], field: str) -> list[str]:
    """One field of every item of a list in a task's config.

    Raises:
        EvaluationError: some items lack it.
    """
    wrong = [item for item in items if not isinstance(item, dict) or field not in item]
    if wrong:
        raise EvaluationError(
            f"task {task}: expected every item of {key} to have a {field}, got {', '.join(map(repr, wrong))}"
        )
    return [str(item[field]) for item in items]


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; nearest: {', '.join(near)}" if near else ""


@contextmanager
def _errors_of(task: str) -> Iterator[None]:
    """Whatever lm-eval, a data set or a user's task code raises, as one error that names the task."""
    try:
        yield
    except EvaluationError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise EvaluationError(f"task {task}: expected it to load and run, got {kind}: {error}") from error


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        # As lm-eval does: a task that states 0 cannot have examples.
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=SEED)


def _run(
    arm: Arm,
    loaded: Any,
    task: str,
    limit: int | None,
    batch_size: int,
    apply_chat_template: bool,
) -> dict[str, Any]:
    """lm-eval's results; not by ``simple_evaluate``, which spends seconds describing the machine."""
    import numpy as np
    from lm_eval import evaluate

    while True:
        random.seed(SEED)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        try:
            lm = arm.lm(batch_size, f"utility ({task})")
            with lm_eval_log_level(logging.WARNING):
                results: dict[str, Any] = evaluate(
                    lm=lm,
                    task_dict=loaded,
                    limit=limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=apply_chat_template,
                    fewshot_as_multiturn=apply_chat_template,
                )
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            logger.warning("task %s: out of memory, starting again with batches of %d", task, batch_size)
            torch.cuda.empty_cache()
        else:
            return results


def _finite(value: Any) -> float | None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def _scores(
    samples: Mapping[str, Any], task: str, metric: str, metric_filter: str, value: float | None
) -> dict[str, float]:
    """Document id to its score; empty unless the figure is the mean of them, as intervals resample it so."""
    scores: dict[str, float] = {}
    for leaf, documents in samples.items():
        for document in documents:
            if document["filter"] != metric_filter:
                continue
            score = _finite(document.get(metric))
            if score is None:
                return {}
            name = str(document["doc_id"]) if leaf == task else f"{leaf}/{document['doc_id']}"
            scores[name] = score
    if value is None or not scores:
        return {}
    mean = math.fsum(scores.values()) / len(scores)
    return scores if math.isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9) else {}


def _task_digest(tasks: Mapping[str, Any], limit: int | None, apply_chat_template: bool) -> str:
    """sha256 of the resolved configs, with the source of their functions, and the documents used."""
    digest = hashlib.sha256()
    for name, task in sorted(tasks.items()):
        config = dict(task.dump_config())
        # The rest of the metadata says where this machine keeps the task and the tokenizer.
        config["metadata"] = {"version": (config.get("metadata") or {}).get("version")}
        documents = [document for _, document in task.doc_iterator(limit=limit)]
        content = [name, config, documents, apply_chat_template]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    return digest.hexdigest()
