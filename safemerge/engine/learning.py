"""Learned coefficients on files: two adapters, two checkpoints and training data in, coefficients out.

Checks go from cheap to dear: settings, data, adapters, cosines, and only then the model is loaded.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch

import safemerge
from safemerge.config.evaluation import SuiteConfig
from safemerge.config.learning import LearningConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.training import DataSource
from safemerge.core import methods
from safemerge.core.layer_weights import UNCHANGED
from safemerge.core.merge import plan_merge
from safemerge.core.module_names import natural_order
from safemerge.core.options import MergeOptions, MergeSettings
from safemerge.core.scoring import Progress
from safemerge.engine.coefficient_files import file_name, read_coefficients
from safemerge.engine.merging import merge_settings, option_settings
from safemerge.engine.scores import ScoredAdapters, score_adapters
from safemerge.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnsupportedAdapterError,
)
from safemerge.evaluation.suites import bare_words, read_suite
from safemerge.reports.learning import Coefficients, FitCost, LayerCoefficients
from safemerge.reports.training import TRAINING_REPORT_FILE, TrainingReport
from safemerge.storage.atomic import atomic_folder, check_absent
from safemerge.storage.hub import resolve
from safemerge.training.answers import encode
from safemerge.training.coefficients import Calibration, Fit, OnLog, check_start, fit_coefficients
from safemerge.training.data import Example, data_digest, load_examples
from safemerge.training.weighed_layers import Weights

PAGE_FILE = "safemerge_coefficients.html"


class CalibrationExamples(NamedTuple):
    """Training examples of the task and of safety that coefficients are fitted to."""

    task: list[Example]
    safety: list[Example]


def learn_coefficients(
    task_adapter: str | Path,
    safety_adapter: str | Path,
    aligned_model: str | Path,
    unaligned_model: str | Path,
    *,
    task_data: Sequence[DataSource],
    safety_data: Sequence[DataSource],
    suites: Sequence[SuiteConfig] = (),
    learning: LearningConfig | None = None,
    output: str | Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    on_log: OnLog | None = None,
    **settings: Unpack[MergeSettings],
) -> list[Coefficients]:
    """Fit the weights of both adapters in every layer to training data.

    :mod:`safemerge.training.coefficients` says how, and what it costs beside fine-tuning.

    Args:
        task_adapter: Folder or hub id of the adapter to repair.
        safety_adapter: Folder or hub id of the adapter that carries safety.
        aligned_model: Folder or hub id of the model that both were trained on.
        unaligned_model: Folder or hub id of its counterpart before alignment.
        task_data: What the task adapter was trained on.
        safety_data: What the safety adapter was trained on: safe answers to harmful requests, and perhaps
            helpful ones to harmless requests, which keep the fit from refusing these.
        suites: What the result will be evaluated on: no prompt of theirs may be in the data.
        learning: λ's, steps, bounds and sizes.
        output: Folder to make for ``coefficients_<λ>.json`` and a page; it must not exist.
        device: Where layers are scored. The model is on CUDA where there is one, else on the CPU.
        progress: Called after each scored layer.
        on_log: Called after each step of a fit with its losses.
        **settings: The merge that the fit starts from and is pulled to: fields of
            :class:`safemerge.core.options.MergeOptions`.

    Returns:
        One record for each λ, in rising order.

    Raises:
        SafemergeError: settings, data, files or tensors are wrong, or a loss is not finite; the output is
            then not made.
    """
    learning = learning or LearningConfig()
    if output is not None:
        check_absent(Path(output))
    options = start_options(learning, **settings)
    data = calibration_examples(task_data, safety_data, suites, learning)
    scored = score_adapters(
        task_adapter,
        safety_adapter,
        aligned_model,
        unaligned_model,
        merges=[options],
        hash_files=True,
        device=device,
        progress=progress,
    )
    if replaced := sorted(scored.task.saved):
        raise UnsupportedAdapterError(
            "task adapter: expected low-rank updates alone, as the model would be fitted without what it "
            f"replaces in full: {', '.join(replaced)}"
        )
    start = start_weights(scored, options)
    model, tokenizer = _load(resolve(aligned_model))
    calibration = _calibration(tokenizer, data, learning)
    fits = fit_coefficients(
        model,
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        scored.task.pairs,
        {} if scored.safety is None else scored.safety.pairs,
        start,
        calibration,
        learning,
        on_log=on_log,
    )
    place = {"device": model.device.type, "dtype": str(model.dtype).removeprefix("torch.")}
    records = [_record(fit, scored, start, data, calibration, learning, options, place) for fit in fits]
    if output is not None:
        _write(records, Path(output))
    return records


def start_options(learning: LearningConfig, **settings: Unpack[MergeSettings]) -> MergeOptions:
    """The merge that fits start from, once it is known that they can.

    Raises:
        ConfigError: its method weighs no updates, or its weights lie outside the bounds of the fit.
    """
    options = MergeOptions(**settings)
    if not methods.get(options.method).weighed_sum:
        weighing = ", ".join(name for name in methods.names() if methods.get(name).weighed_sum)
        raise ConfigError(
            f"method: expected one that weighs the two updates ({weighing}) to start from, "
            f"got {options.method}"
        )
    if options.coefficients is not None:
        check_start(dict(options.coefficients.layers), learning)
        return options
    start: Weights = {"merged layers": _merged_weights(options)}
    if methods.get(options.method).chooses and options.quantile != 1:
        start["layers that are not merged"] = UNCHANGED
    check_start(start, learning)
    return options


def check_learning(config: PipelineConfig) -> None:
    """Check, before anything is trained, that ``tuning.learning`` can be done, where there is one.

    Raises:
        ConfigError: fits cannot start from the merge, or have a λ of which a file is a candidate already.
        DataError: data cannot be read, or hold requests of a suite.
    """
    if config.tuning is None or config.tuning.learning is None:
        return
    check_fits(config)
    calibration_examples(
        config.task_training.data,
        config.safety_training.data,
        (*config.evaluation.suites, *config.tuning.suites),
        config.tuning.learning,
    )


def check_fits(config: PipelineConfig) -> None:
    """The same without reading the data.

    Raises:
        ConfigError: as above.
    """
    if config.tuning is None or config.tuning.learning is None:
        return
    learning = config.tuning.learning
    start_options(learning, **merge_settings(config.merge))
    files = {read_coefficients(file).name: file for file in config.tuning.grid.coefficients}
    if clash := [file for name, file in files.items() if name in {f"{x:g}" for x in learning.harm_weights}]:
        raise ConfigError(
            "tuning.learning.harm_weights: expected other λ than those of tuning.grid.coefficients, got the "
            f"one of {', '.join(clash)}"
        )


def calibration_examples(
    task_data: Sequence[DataSource],
    safety_data: Sequence[DataSource],
    suites: Sequence[SuiteConfig],
    learning: LearningConfig,
) -> CalibrationExamples:
    """A seeded sample of the training data, each request once.

    Raises:
        DataError: data cannot be read, or hold requests of a suite; all such are counted, the first named.
    """
    asked = {
        bare_words(prompt.text): suite.name for suite in map(read_suite, suites) for prompt in suite.prompts
    }
    drawn = []
    sizes = (learning.task_examples, learning.safety_examples)
    for what, sources, size in zip(("task", "safety"), (task_data, safety_data), sizes, strict=True):
        examples = list({bare_words(example.prompt): example for example in load_examples(sources)}.values())
        if overlap := [example.prompt for example in examples if bare_words(example.prompt) in asked]:
            raise DataError(
                f"{what} data: expected training data that no evaluation suite asks, got {len(overlap)} "
                f"requests of theirs, such as {overlap[0]!r} of suite {asked[bare_words(overlap[0])]}"
            )
        if len(examples) < 2:
            raise DataError(f"{what} data: expected at least 2 requests that differ, got {len(examples)}")
        order = random.Random(learning.seed).sample(range(len(examples)), min(size, len(examples)))  # noqa: S311
        drawn.append([examples[index] for index in order])
    return CalibrationExamples(*drawn)


def start_weights(scored: ScoredAdapters, options: MergeOptions) -> Weights:
    """(α, β) of every layer as a merge has them: (1, 0) where it keeps the layer."""
    safety = {} if scored.safety is None else scored.safety.pairs
    plan = plan_merge(scored.task.pairs, safety, scored.scores, options)
    alpha, beta = _merged_weights(options)
    found: Weights = {}
    for module in scored.task.pairs:
        pair = plan.weights(module) or (alpha, beta)
        alone = pair[0], pair[1] if module in safety else 0.0
        found[module] = alone if module in plan.selection.chosen else UNCHANGED
    return found


def _merged_weights(options: MergeOptions) -> tuple[float, float]:
    """(α, β) of merged layers, of methods that have one pair for all."""
    alpha, beta = options.weights
    return alpha, beta if methods.get(options.method).weighs_safety else 0.0


def _load(folder: Path) -> tuple[Any, Any]:
    """The aligned model and its tokenizer: bf16 on a GPU that has it, else fp32.

    Raises:
        CheckpointError: they cannot be loaded.
        ConfigError: the tokenizer has no chat template.
        MissingDependencyError: transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingDependencyError("transformers", "training") from error

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if tokenizer.chat_template is None:
            raise ConfigError(f"{folder}: expected a tokenizer with a chat template, got none")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: expected a model with its tokenizer, got {error}") from error
    return model.to("cuda" if cuda else "cpu"), tokenizer


def _calibration(tokenizer: Any, data: CalibrationExamples, learning: LearningConfig) -> Calibration:
    """Encoded examples; of each kind a share is held out, at least one."""
    parts = []
    for what, examples in zip(CalibrationExamples._fields, data, strict=True):
        encoded = encode(tokenizer, examples, learning.max_length_tokens)
        if len(encoded) < 2:
            raise DataError(
                f"{what} data: expected at least 2 answers that begin within {learning.max_length_tokens} "
                f"tokens, got {len(encoded)} of {len(examples)}"
            )
        held_out = min(max(1, round(learning.validation_share * len(encoded))), len(encoded) - 1)
        parts += [encoded[held_out:], encoded[:held_out]]
    return Calibration(*parts)


def _record(
    fit: Fit,
    scored: ScoredAdapters,
    start: Weights,
    data: CalibrationExamples,
    calibration: Calibration,
    learning: LearningConfig,
    options: MergeOptions,
    place: dict[str, str],
) -> Coefficients:
    safety = {} if scored.safety is None else scored.safety.pairs
    layers = []
    for module in sorted(fit.weights, key=natural_order):
        (task, beta), (start_task, start_beta) = fit.weights[module], start[module]
        has = module in safety
        layers.append(
            LayerCoefficients(
                module=module,
                task=task,
                safety=beta if has else None,
                start_task=start_task,
                start_safety=start_beta if has else None,
            )
        )
    training = _training_report(scored.task.folder)
    return Coefficients(
        safemerge_version=safemerge.__version__,
        harm_weight=fit.harm_weight,
        layers=tuple(layers),
        losses=fit.losses,
        steps=fit.steps,
        steps_run=fit.steps_run,
        examples={name: len(part) for name, part in calibration._asdict().items()},
        cost=FitCost(
            wall_s=fit.wall_s,
            trained_tokens=fit.trained_tokens,
            measured_tokens=fit.measured_tokens,
            fine_tuning_s=None if training is None else training.wall_s,
            fine_tuning_tokens=None if training is None else _fine_tuning_tokens(training, calibration),
        ),
        settings={
            "learning": learning.model_dump(mode="json", exclude={"harm_weights"}),
            "start": option_settings(options),
        },
        digests=scored.digests
        | {"task_data": data_digest(data.task), "safety_data": data_digest(data.safety)},
        warnings=scored.warnings,
        **place,
    )


def _training_report(adapter: Path) -> TrainingReport | None:
    path = adapter / TRAINING_REPORT_FILE
    return TrainingReport.read(path) if path.is_file() else None


def _fine_tuning_tokens(training: TrainingReport, calibration: Calibration) -> int:
    examples = calibration.task_fit + calibration.task_validation
    mean = sum(len(example.input_ids) for example in examples) / len(examples)
    return round(training.steps * training.effective_batch_size * mean)


def _write(records: Iterable[Coefficients], output: Path) -> None:
    from safemerge.plots.coefficients import coefficients_html

    records = list(records)
    with atomic_folder(output) as folder:
        for record in records:
            (folder / file_name(record)).write_text(record.to_json(), encoding="utf-8")
        (folder / PAGE_FILE).write_text(coefficients_html(records), encoding="utf-8")
