"""LoRA supervised fine-tuning: the one path that trains task and safety adapters alike.

TRL's ``SFTTrainer`` does the work on the model's chat template, with the loss on the
answers alone. Computation is fp32, or bf16 on CUDA devices that have it. Checkpoints
go to a working folder; a later call with the same inputs resumes from the last whole
one and ends at the same adapter as an uninterrupted run.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from safemerge.config.training import Quantization, TrainingSettings
from safemerge.errors import ConfigError, DataError, MissingDependencyError
from safemerge.records import json_digest
from safemerge.reports.training import TRAINING_REPORT_FILE, TrainingReport
from safemerge.storage.atomic import atomic_folder, check_absent
from safemerge.storage.checkpoints import Checkpoint
from safemerge.training.data import Example, data_digest
from safemerge.training.processes import check_processes, launched_processes, run_together

if TYPE_CHECKING:
    from safemerge.training.trainer import AnswerTrainer, OnLog

_LOGS_PER_RUN = 40

logger = logging.getLogger(__name__)


def train_adapter(
    model: Path,
    data: Sequence[Example],
    output: Path,
    work: Path,
    settings: TrainingSettings,
    *,
    model_name: str | None = None,
    on_log: OnLog | None = None,
) -> TrainingReport:
    """Fine-tune one LoRA adapter on prompt and response pairs.

    Where ``settings.processes`` are several, they are started here. Under ``torchrun`` or
    ``accelerate launch`` every process calls this with the same arguments instead, ``output`` and
    ``work`` on a disk that all machines share. The main process writes the adapter.

    Args:
        model: folder of the model to adapt, with a tokenizer that has a chat template.
        data: the examples; only the responses bear loss.
        output: folder to create with the adapter and ``safemerge_training.json``.
        work: folder for checkpoints, kept for the caller to prune.
        settings: adapter shape, optimiser, checkpoint interval and seed.
        model_name: what the adapter's config shall name as its model: a hub id, with
            ``@revision`` where one is meant; the folder where not given.
        on_log: called about forty times a run with metrics and their step, in the main process;
            pickled on the way where there are several.

    Returns:
        What was trained and how; the same record lies in ``output``.

    Raises:
        OutputExistsError: ``output`` exists.
        DataError: no examples, or none with an answer within the largest length.
        CheckpointError: the model's files are missing, damaged, pickled or quantised.
        ConfigError: 4-bit training without CUDA, a model without chat template, or another number
            of processes than there are devices for or a launcher started.
        MissingDependencyError: TRL is not installed, or bitsandbytes for 4-bit training.
        NonFiniteError: the loss became NaN or infinite.
    """
    _check_before_loading(data, output, settings)
    name = model_name or str(model)
    job = _Job(model, name, data, work, settings, _fingerprint(model, data, settings))
    batch_size, accumulation = settings.batch_size, settings.gradient_accumulation
    launched = launched_processes()
    while True:
        try:
            if launched is None and settings.processes > 1:
                return run_together(settings.processes, _train, job, output, batch_size, accumulation, on_log)
            return _train(job, output, batch_size, accumulation, on_log)
        except torch.cuda.OutOfMemoryError:
            # The others of a launcher's processes wait for this one: they can only end together.
            if batch_size == 1 or launched not in (None, 1):
                raise
            smaller = _largest_proper_divisor(batch_size)
            accumulation *= batch_size // smaller
            logger.warning("out of device memory at batch size %d: going on with %d", batch_size, smaller)
            batch_size = smaller
        # Outside the handler: the exception's frames hold the model until it ends.
        torch.cuda.empty_cache()


class _Job(NamedTuple):
    """What every attempt at a training shares."""

    model: Path
    name: str
    data: Sequence[Example]
    work: Path
    settings: TrainingSettings
    fingerprint: str


def _check_before_loading(data: Sequence[Example], output: Path, settings: TrainingSettings) -> None:
    check_absent(output)
    check_processes(settings.processes)
    if not data:
        raise DataError("training data: expected at least one example, got none")
    if settings.quantization is Quantization.NF4:
        if not torch.cuda.is_available():
            raise ConfigError("quantization: nf4 needs a CUDA device, got none; use quantization: none")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingDependencyError("bitsandbytes", "quantization")
    if importlib.util.find_spec("trl") is None:
        raise MissingDependencyError("trl", "training")


def _train(
    job: _Job, output: Path, batch_size: int, accumulation: int, on_log: OnLog | None
) -> TrainingReport:
    """One attempt at a given batch size; see :func:`train_adapter`."""
    from transformers import PrinterCallback

    from safemerge.training.trainer import (
        CheckpointMarker,
        Progress,
        checkpoint_step,
        last_complete_checkpoint,
    )

    settings = job.settings
    checkpoint = last_complete_checkpoint(job.work, job.fingerprint)
    if checkpoint is not None:
        logger.info("resuming from %s", checkpoint)
    trainer = _build_trainer(job, batch_size, accumulation)
    if trainer.accelerator.num_processes != settings.processes:
        group = trainer.accelerator.num_processes
        raise ConfigError(f"processes: expected a group of {settings.processes}, got one of {group}")
    truncated = _count_truncated(
        trainer.train_dataset["input_ids"], len(job.data), settings.max_length_tokens
    )
    trainer.remove_callback(PrinterCallback)  # prints what our own lines say
    trainer.add_callback(Progress(settings.steps, on_log))
    trainer.add_callback(CheckpointMarker(job.fingerprint))
    started_s = time.monotonic()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    wall_s = time.monotonic() - started_s
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    report = TrainingReport(
        model=job.name,
        data_digest=data_digest(job.data),
        examples=len(trainer.train_dataset),
        truncated_examples=truncated,
        settings=settings.model_dump(mode="json", exclude={"data"}),
        batch_size=batch_size,
        gradient_accumulation=accumulation,
        processes=trainer.accelerator.num_processes,
        effective_batch_size=batch_size * accumulation * trainer.accelerator.num_processes,
        steps=trainer.state.global_step,
        resumed_from_step=None if checkpoint is None else checkpoint_step(checkpoint),
        device=trainer.args.device.type,
        dtype="bfloat16" if trainer.args.bf16 else "float32",
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        final_loss=losses[-1],
        wall_s=wall_s,
    )
    if trainer.is_world_process_zero():
        with atomic_folder(output) as folder:
            _name_model(trainer.model.peft_config["default"], job.name)
            trainer.model.save_pretrained(str(folder), save_embedding_layers=False)
            (folder / TRAINING_REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return report


def _count_truncated(kept: Sequence[Sequence[int]], examples: int, max_length_tokens: int) -> int:
    """Examples that were cut or dropped for their length; a warning where there are some.

    Raises:
        DataError: none is left.
    """
    if not len(kept):
        raise DataError(
            f"training data: expected answers that begin within {max_length_tokens} tokens, "
            f"got {examples} prompts that are longer by themselves"
        )
    truncated = examples - len(kept) + sum(len(ids) >= max_length_tokens for ids in kept)
    if truncated:
        logger.warning("%d of %d examples are cut at %d tokens", truncated, examples, max_length_tokens)
    return truncated


def _build_trainer(job: _Job, batch_size: int, accumulation: int) -> AnswerTrainer:
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging
    from trl import SFTConfig

    from safemerge.training.trainer import AnswerTrainer

    settings = job.settings
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    if tokenizer.chat_template is None:
        raise ConfigError(f"{job.name}: expected a tokenizer with a chat template, got none")
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported()
    recompute = settings.gradient_checkpointing
    arguments = SFTConfig(
        output_dir=str(job.work),
        max_steps=settings.steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_share * settings.steps),
        max_length=settings.max_length_tokens,
        completion_only_loss=True,
        activation_checkpointing=cuda if recompute is None else recompute,
        ddp_find_unused_parameters=False,
        bf16=bf16,
        use_cpu=not cuda,  # without it, processes on a CPU would each train by themselves
        save_strategy="steps",
        save_steps=settings.save_every_steps,
        # Two, since the newest may be the half-written one.
        save_total_limit=2,
        logging_steps=max(1, settings.steps // _LOGS_PER_RUN),
        logging_nan_inf_filter=False,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,  # the log lines below carry an ETA, and live through a scheduler's log
        report_to="none",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process takes one device: the rest would enlarge the batch unasked
    rows = [
        {
            "prompt": [{"role": "user", "content": example.prompt}],
            "completion": [{"role": "assistant", "content": example.response}],
        }
        for example in job.data
    ]
    targets = settings.lora.target_modules
    lora = LoraConfig(
        r=settings.lora.r,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    return AnswerTrainer(
        model=_load_model(job.model, settings, bf16),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )


def _load_model(model: Path, settings: TrainingSettings, bf16: bool) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = None
    if settings.quantization is Quantization.NF4:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
        )
    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16 if bf16 else torch.float32, quantization_config=quantization
    )


def _name_model(lora: Any, name: str) -> None:
    """Write into the adapter's config which model it belongs to.

    Done at the end, since PEFT asks the hub about every name that is no folder each
    time it saves a checkpoint.
    """
    hub_id, at, revision = name.rpartition("@")
    lora.base_model_name_or_path = name
    if at and not Path(name).is_dir():
        lora.base_model_name_or_path, lora.revision = hub_id, revision


def _fingerprint(model: Path, data: Sequence[Example], settings: TrainingSettings) -> str:
    """sha256 of all that the weights in a checkpoint depend on.

    The model counts by its files' bytes, since other weights may come to lie in the same
    folder. Hashing takes seconds a gigabyte, and warms the files for the load that follows.
    """
    kept = settings.model_dump(mode="json", exclude={"data", "save_every_steps"})
    return json_digest(
        {"model": Checkpoint.open(model).files_digest(), "data": data_digest(data), "settings": kept}
    )


def _largest_proper_divisor(number: int) -> int:
    """The largest divisor below the number, so that batch times accumulation stays exact."""
    return next(d for d in range(number // 2, 0, -1) if number % d == 0)
