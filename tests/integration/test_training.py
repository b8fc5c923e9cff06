"""Fine-tuning a tiny model for real: what is learned, what is written, and going on after a kill."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safemerge.config.training import LoraSettings, TrainingSettings
from safemerge.errors import ConfigError, DataError, NonFiniteError
from safemerge.reports.training import TRAINING_REPORT_FILE, TrainingReport
from safemerge.training.data import Example, data_digest
from safemerge.training.sft import train_adapter

pytestmark = pytest.mark.integration

DATA = [Example(f"How do I do {i}?", f"Sure! Here is how to do {i}.") for i in range(6)]
SETTINGS = TrainingSettings(
    lora=LoraSettings(r=2, alpha=4, dropout=0.1),
    steps=6,
    learning_rate=5e-3,
    batch_size=4,
    save_every_steps=2,
    seed=3,
)


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """(folder with ``adapter`` and ``work``, what on_log received) of one uninterrupted training."""
    root = tmp_path_factory.mktemp("trained")
    logged: list[Any] = []
    train_adapter(
        tiny_checkpoint,
        DATA,
        root / "adapter",
        root / "work",
        SETTINGS,
        model_name="someone/tiny@v1",
        on_log=lambda metrics, step: logged.append((step, dict(metrics))),
    )
    return root, logged


def test_the_adapter_and_its_report_are_written(trained: tuple[Path, list[Any]]):
    root, _ = trained
    report = TrainingReport.read(root / "adapter" / TRAINING_REPORT_FILE)
    assert (report.model, report.examples, report.steps) == ("someone/tiny@v1", 6, 6)
    assert report.data_digest == data_digest(DATA)
    assert (report.resumed_from_step, report.truncated_examples) == (None, 0)
    config = json.loads((root / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", "v1")
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert report.trainable_parameters == sum(t.numel() for t in weights(root / "adapter").values())


def test_progress_reports_every_step_and_a_falling_loss(trained: tuple[Path, list[Any]]):
    _, logged = trained
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "learning_rate", "grad_norm", "seconds_per_step"} <= m.keys() for _, m in logged)
    assert logged[-1][1]["loss"] < logged[0][1]["loss"]


def test_the_loss_is_that_of_the_answers_alone(
    trained: tuple[Path, list[Any]], tiny_checkpoint: Path, tmp_path: Path
):
    """By hand: mean over the answer's tokens, closing marker included, of one batch with all examples."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    total, count = 0.0, 0
    for example in DATA:
        turns = [{"role": "user", "content": example.prompt}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        turns.append({"role": "assistant", "content": example.response})
        ids = torch.tensor(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
        with torch.no_grad():
            scores = model(ids[None]).logits[0].log_softmax(-1)
        answer = range(len(prompt), len(ids))
        total -= sum(float(scores[i - 1, ids[i]]) for i in answer)
        count += len(answer)
    losses: list[float] = []
    settings = SETTINGS.model_copy(update={"steps": 1, "batch_size": 6, "lora": LoraSettings(r=2)})
    train_adapter(
        tiny_checkpoint,
        DATA,
        tmp_path / "adapter",
        tmp_path / "work",
        settings,
        on_log=lambda metrics, _: losses.append(metrics["loss"]),
    )
    assert losses == [pytest.approx(total / count, rel=1e-4)]  # the loss is logged with four digits


def test_a_second_training_gives_the_same_adapter(
    trained: tuple[Path, list[Any]], tiny_checkpoint: Path, tmp_path: Path
):
    root, _ = trained
    train_adapter(tiny_checkpoint, DATA, tmp_path / "adapter", tmp_path / "work", SETTINGS)
    assert same(weights(tmp_path / "adapter"), weights(root / "adapter"))
    other = SETTINGS.model_copy(update={"seed": 4})
    train_adapter(tiny_checkpoint, DATA, tmp_path / "other", tmp_path / "work", other)
    assert not same(weights(tmp_path / "other"), weights(root / "adapter"))


def test_a_killed_training_goes_on_from_the_last_whole_checkpoint(
    trained: tuple[Path, list[Any]], tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root, _ = trained

    class KilledError(Exception):
        pass

    def kill_at_step_5(_: Mapping[str, float], step: int) -> None:
        if step == 5:
            raise KilledError

    work = tmp_path / "work"
    model_name = "someone/tiny@v1"
    with pytest.raises(KilledError):
        train_adapter(
            tiny_checkpoint,
            DATA,
            tmp_path / "a",
            work,
            SETTINGS,
            model_name=model_name,
            on_log=kill_at_step_5,
        )
    assert not (tmp_path / "a").exists()
    # As if the kill had come while the checkpoint of step 4 was being written.
    (work / "checkpoint-4" / "complete.json").unlink()
    (work / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    with caplog.at_level(logging.INFO, logger="safemerge"):
        report = train_adapter(tiny_checkpoint, DATA, tmp_path / "a", work, SETTINGS, model_name=model_name)
    assert report.resumed_from_step == 2
    assert "checkpoint-2" in caplog.text
    assert "ETA 0:00" in caplog.text
    assert same(weights(tmp_path / "a"), weights(root / "adapter"))


def test_a_smaller_batch_after_running_out_of_memory_learns_the_same(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """No device here can run out of CUDA memory, so the forward pass says it for more than two examples."""
    from safemerge.training.trainer import AnswerTrainer

    settings = SETTINGS.model_copy(update={"steps": 3, "lora": LoraSettings(r=2)})
    train_adapter(tiny_checkpoint, DATA, tmp_path / "whole", tmp_path / "w1", settings)
    compute_loss = AnswerTrainer.compute_loss

    def limited(self: AnswerTrainer, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return compute_loss(self, model, inputs, *rest, **named)

    monkeypatch.setattr(AnswerTrainer, "compute_loss", limited)
    report = train_adapter(tiny_checkpoint, DATA, tmp_path / "halved", tmp_path / "w2", settings)
    assert (report.batch_size, report.gradient_accumulation) == (2, 2)
    assert "out of device memory at batch size 4: going on with 2" in caplog.text
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "halved")
    # Another order of summation only; Adam's first steps divide by it, which costs digits.
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_activations_computed_again_give_the_same_adapter(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda *args: calls.append(1) or forward(*args))
    counts = {}
    for recompute in (None, False, True):
        settings = SETTINGS.model_copy(update={"steps": 1, "gradient_checkpointing": recompute})
        train_adapter(tiny_checkpoint, DATA, tmp_path / f"{recompute}", tmp_path / f"w{recompute}", settings)
        counts[recompute] = len(calls)
        calls.clear()
    assert counts[True] == 2 * counts[False]
    assert counts[None] == counts[torch.cuda.is_available()]
    assert same(weights(tmp_path / "True"), weights(tmp_path / "False"))


def test_examples_too_long_are_counted_and_none_left_is_an_error(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = SETTINGS.model_copy(update={"steps": 1, "max_length_tokens": 70})
    data = [*DATA, Example("word " * 200, "r"), Example("Short?", "word " * 200)]
    report = train_adapter(tiny_checkpoint, data, tmp_path / "a", tmp_path / "work", settings)
    assert (report.examples, report.truncated_examples) == (7, 2)
    assert "2 of 8 examples are cut at 70 tokens" in caplog.text
    with pytest.raises(DataError, match=r"expected answers that begin within 70 tokens, got 1 prompts"):
        train_adapter(tiny_checkpoint, data[6:7], tmp_path / "b", tmp_path / "work", settings)


def test_a_loss_that_is_not_finite_ends_the_training(tiny_checkpoint: Path, tmp_path: Path):
    from safetensors.torch import save_file

    broken = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="training loss at step 1: expected a finite number, got nan"):
        train_adapter(broken, DATA, tmp_path / "a", tmp_path / "work", SETTINGS)
    assert not (tmp_path / "a").exists()


def test_a_model_without_chat_template_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    plain = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, plain)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="expected a tokenizer with a chat template, got none"):
        train_adapter(plain, DATA, tmp_path / "a", tmp_path / "work", SETTINGS)
