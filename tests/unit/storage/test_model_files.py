"""What makes a folder of weights a model: what is copied, what is changed, and what would lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from safemerge.storage.model_files import copy_companions, write_card, write_config, write_index


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "original").mkdir()
    return folder


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(f"content of {name}")


def _config(source: Path, tmp_path: Path, config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    (source / "config.json").write_text(json.dumps(config))
    write_config(source, tmp_path, **changes)
    written: dict[str, Any] = json.loads((tmp_path / "config.json").read_text())
    return written


def test_tokenizer_template_code_and_licence_are_copied_bit_for_bit(source: Path, tmp_path: Path) -> None:
    shared = [
        *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("tokenizer.model", "merges.txt", "vocab.txt", "chat_template.jinja", "modeling_own.py"),
        *("LICENSE", "LICENCE.txt", "NOTICE", "USE_POLICY.md", "additional_chat_templates/tool.jinja"),
    ]
    _write(source, *shared)
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(source, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == set(shared)
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in shared)


def test_weights_and_what_would_lie_are_left_out(source: Path, tmp_path: Path) -> None:
    _write(source, "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "optimizer.pt")
    _write(source, "README.md", "config.json", "adapter_config.json", "trainer_state.json", ".hidden.json")
    _write(source, "safemerge_report.json", "safemerge_export.json", "original/params.json")
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(source, target)
    assert list(target.iterdir()) == []


def test_a_config_without_changes_is_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text('{"a":   1}')
    write_config(source, tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"a":   1}'


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32", "a": 1}, {"torch_dtype": "bfloat16", "a": 1}),
        ({}, {"torch_dtype": "bfloat16"}),
        (
            {"dtype": "x", "text_config": {"dtype": "x"}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}},
        ),
        ({"dtype": "x", "text_config": {"b": 1}}, {"dtype": "bfloat16", "text_config": {"b": 1}}),
    ],
)
def test_the_dtype_is_written_where_it_stood(
    source: Path, tmp_path: Path, config: dict[str, Any], written: dict[str, Any]
) -> None:
    assert _config(source, tmp_path, config, dtype="bfloat16") == written


def test_untied_embeddings_are_said_so_wherever_it_is_read(source: Path, tmp_path: Path) -> None:
    config = {"a": 1, "text_config": {"tie_word_embeddings": True}, "other": {"tie_word_embeddings": True}}
    assert _config(source, tmp_path, config, untied=True) == {
        "a": 1,
        "tie_word_embeddings": False,
        "text_config": {"tie_word_embeddings": False},
        "other": {"tie_word_embeddings": True},
    }


def test_the_index_is_kept_with_its_size_corrected(source: Path, tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 1, "total_parameters": 2}, "weight_map": {"b": "2", "a": "1"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    write_index(source, tmp_path, copies={}, tensor_bytes=7)
    written = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert written == index | {"metadata": {"total_size": 7, "total_parameters": 2}}
    assert list(written["weight_map"]) == ["b", "a"]
    write_index(source, tmp_path, copies={"c": "a"}, tensor_bytes=9)
    written = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert written == {"metadata": {"total_size": 9}, "weight_map": {"b": "2", "a": "1", "c": "1"}}


def test_the_card_names_the_base_and_keeps_its_licence(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own\neval: 9\n---\nThe best model.\n"
    )
    write_card(source, tmp_path, base="org/base", title="mine", lines=["One.", "Two."])
    _, head, text = (tmp_path / "README.md").read_text().split("---\n")
    assert yaml.safe_load(head) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "other",
        "license_name": "own",
        "tags": ["safemerge", "lora"],
    }
    assert text == "\n# mine\n\nOne.\n\nTwo.\n"


@pytest.mark.parametrize(
    "card", [None, "no head", "---\n: [\n---\n", "---\n- a list\n---\n", "---\nopen: 1\n"]
)
def test_a_card_without_a_head_gives_none(source: Path, tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (source / "README.md").write_text(card)
    write_card(source, tmp_path, base=None, title="mine", lines=[])
    head = (tmp_path / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head) == {"library_name": "transformers", "tags": ["safemerge", "lora"]}
