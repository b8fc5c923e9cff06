"""What makes a folder of weights a model: config, tokenizer, chat template, licence, index and card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from safemerge.storage.checkpoints import INDEX_FILE, read_json
from safemerge.storage.hub import DOCUMENT_FILES, MODEL_FILES

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"

_COPIED = (
    *MODEL_FILES, "*.txt", "*.tiktoken", "*.py", "additional_chat_templates/*.jinja", *DOCUMENT_FILES,
)  # fmt: skip

# The card tells of another model; an adapter's config would make transformers load that adapter on top.
_LEFT_OUT = (
    CARD_FILE, CONFIG_FILE, "*.index.json", "adapter_config.json", "trainer_state.json", "safemerge_*.json",
)  # fmt: skip

_LICENCE_KEYS = ("license", "license_name", "license_link")
_DTYPE_KEYS = ("dtype", "torch_dtype")


def companion_files(source: Path) -> list[Path]:
    """The files of a model that a changed copy of it shares: all but weights, config, index and card."""
    found = {path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    return sorted(
        path
        for path in found
        if not path.name.startswith(".") and not any(path.match(pattern) for pattern in _LEFT_OUT)
    )


def copy_companions(source: Path, folder: Path) -> None:
    """Copy a model's :func:`companion_files` into an existing folder."""
    for path in companion_files(source):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


def write_config(source: Path, folder: Path, *, dtype: str | None = None, untied: bool = False) -> None:
    """Copy config.json, with another dtype or with an output embedding of its own where asked for.

    Args:
        source: The model's folder.
        folder: Where to write.
        dtype: In the words of torch, such as ``bfloat16``; None leaves it as it is.
        untied: Whether the output embedding is no longer the input embedding.
    """
    if dtype is None and not untied:
        shutil.copyfile(source / CONFIG_FILE, folder / CONFIG_FILE)
        return
    config = read_json(source / CONFIG_FILE)
    text = config.get("text_config")
    for part in (config, text) if isinstance(text, dict) else (config,):
        if dtype is not None:
            known = [key for key in _DTYPE_KEYS if key in part]
            part.update(dict.fromkeys(known or _DTYPE_KEYS[-1:], dtype) if part is config or known else {})
        if untied and (part is config or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    (folder / CONFIG_FILE).write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_index(source: Path, folder: Path, *, copies: Mapping[str, str], tensor_bytes: int) -> None:
    """Copy the index of a sharded model, with new tensors beside those they are copies of.

    Args:
        source: The model's folder.
        folder: Where to write.
        copies: New tensors to existing ones.
        tensor_bytes: Size of all tensors.
    """
    index = read_json(source / INDEX_FILE)
    weight_map = index["weight_map"]
    index["weight_map"] = weight_map | {new: weight_map[existing] for new, existing in copies.items()}
    metadata = (index.get("metadata") or {}) | {"total_size": tensor_bytes}
    if copies:  # some writers count parameters, each their own way
        metadata.pop("total_parameters", None)
    index["metadata"] = metadata
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_card(source: Path, folder: Path, *, base: str | None, title: str, lines: Iterable[str]) -> None:
    """Write a card that says how the weights were made, and no more; the base's licence is kept.

    Args:
        source: The base model's folder.
        folder: Where to write.
        base: The base model's hub id, where it has one.
        title: The card's heading.
        lines: Paragraphs.
    """
    facts: dict[str, Any] = {"library_name": "transformers", "tags": ["safemerge", "lora"]}
    if base is not None:
        facts |= {"base_model": base, "base_model_relation": "finetune"}
    before = _front_matter(source / CARD_FILE)
    facts |= {key: before[key] for key in _LICENCE_KEYS if key in before}
    text = f"---\n{yaml.safe_dump(facts, sort_keys=True)}---\n\n# {title}\n\n" + "\n\n".join(lines) + "\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _front_matter(card: Path) -> dict[str, Any]:
    """The YAML head of a model card; nothing where there is none that can be read."""
    try:
        head = card.read_text(encoding="utf-8").split("---\n")
        facts = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return facts if isinstance(facts, dict) else {}
