"""What is refused before a model is loaded, and the small decisions around the training loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from safemerge.config.training import Quantization, TrainingSettings
from safemerge.errors import ConfigError, DataError, MissingDependencyError, OutputExistsError
from safemerge.training import sft
from safemerge.training.data import Example
from safemerge.training.sft import train_adapter

DATA = [Example("p", "r")]


def train(tmp_path: Path, data: list[Example] = DATA, **settings: object) -> None:
    """Train on a model that does not exist: only the checks before loading can answer."""
    train_adapter(
        tmp_path / "no-model",
        data,
        tmp_path / "out",
        tmp_path / "work",
        TrainingSettings(steps=1, **settings),
    )


def test_an_output_that_exists_is_refused(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="out: expected a path that does not exist yet"):
        train(tmp_path)


def test_no_examples_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="expected at least one example, got none"):
        train(tmp_path, data=[])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_four_bit_training_without_cuda_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="quantization: nf4 needs a CUDA device, got none"):
        train(tmp_path, quantization=Quantization.NF4)


def test_four_bit_training_without_bitsandbytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sft.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"bitsandbytes is not installed: .*safemerge\[quantization\]"
    ):
        train(tmp_path, quantization=Quantization.NF4)


@pytest.mark.parametrize(("number", "divisor"), [(2, 1), (3, 1), (8, 4), (9, 3), (15, 5)])
def test_a_smaller_batch_divides_the_one_asked_for(number: int, divisor: int):
    assert sft._largest_proper_divisor(number) == divisor


def test_a_checkpoint_counts_only_when_whole_and_of_the_same_inputs(tmp_path: Path):
    from safemerge.training.trainer import last_complete_checkpoint

    def checkpoint(step: int, marker: str | None) -> None:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if marker is not None:
            (folder / "complete.json").write_text(marker)

    assert last_complete_checkpoint(tmp_path / "absent", "f") is None
    same = json.dumps({"fingerprint": "f"})
    checkpoint(9, same)
    checkpoint(10, same)
    checkpoint(20, None)
    checkpoint(30, json.dumps({"fingerprint": "other"}))
    checkpoint(40, same[:10])
    assert last_complete_checkpoint(tmp_path, "f") == tmp_path / "checkpoint-10"


def test_the_fingerprint_follows_what_the_weights_depend_on(merge_files, edit_tensors, tmp_path: Path):
    model, settings = merge_files.aligned, TrainingSettings(steps=5)
    print_of = sft._fingerprint
    same = print_of(model, DATA, settings)
    assert print_of(model, DATA, settings.model_copy(update={"save_every_steps": 1})) == same
    assert print_of(shutil.copytree(model, tmp_path / "moved"), DATA, settings) == same
    others = [
        print_of(merge_files.unaligned, DATA, settings),
        print_of(model, DATA * 2, settings),
        print_of(model, DATA, settings.model_copy(update={"seed": 1})),
    ]
    edit_tensors(model / "model.safetensors", lambda t: t["model.embed_tokens.weight"].add_(1))
    others.append(print_of(model, DATA, settings))
    (model / "chat_template.jinja").write_text("x")
    others.append(print_of(model, DATA, settings))
    assert same not in others
    assert len(set(others)) == len(others)
