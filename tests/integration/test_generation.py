"""Answers of a tiny model: loaded, asked in batches, with an adapter and without."""

from __future__ import annotations

import logging

import pytest
import torch

from safemerge.errors import AdapterError, CheckpointError, EvaluationError, MismatchError
from safemerge.evaluation.generation import generate
from safemerge.evaluation.suites import ChatFormat
from safemerge.evaluation.transformers_arm import encode, load_arm
from tests.integration.measured import PROMPTS

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def aligned(tiny_checkpoint):
    return load_arm(tiny_checkpoint)


@pytest.fixture(scope="module")
def adapter(tiny_adapter):
    return tiny_adapter(seed=3, scale=0.5)


def _tokens_by_hand(arm, text, max_new_tokens):
    """One prompt without batch, padding, cache or generate(): the argmax, again and again."""
    messages = [{"role": "user", "content": text}]
    prompt = arm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens = arm.tokenizer.encode(prompt, add_special_tokens=False)
    start = len(tokens)
    while len(tokens) < start + max_new_tokens and arm.tokenizer.eos_token_id not in tokens[start:]:
        with torch.inference_mode():
            tokens.append(int(arm.model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[start:]


def _greedy_by_hand(arm, text, max_new_tokens):
    return arm.tokenizer.decode(_tokens_by_hand(arm, text, max_new_tokens), skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batched_answers_equal_those_of_a_plain_loop(aligned, batch_size):
    answers = generate(aligned, PROMPTS, max_new_tokens=12, batch_size=batch_size)
    assert answers == {i: _greedy_by_hand(aligned, text, 12) for i, text in PROMPTS.items()}
    assert list(answers) == list(PROMPTS)
    assert len(set(answers.values())) == len(PROMPTS)


def test_sampling_and_penalties_that_a_model_ships_with_are_left_out(tiny_checkpoint, aligned):
    from transformers import GenerationConfig

    arm = load_arm(tiny_checkpoint)
    arm.model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, eos_token_id=[2]
    )
    expected = generate(aligned, PROMPTS, max_new_tokens=12, batch_size=4)
    assert generate(arm, PROMPTS, max_new_tokens=12, batch_size=4) == expected
    assert arm.model.generation_config.repetition_penalty == 9.0


def test_an_answer_ends_at_any_end_token_the_model_ships_with(tiny_checkpoint, aligned):
    arm = load_arm(tiny_checkpoint)
    full = _tokens_by_hand(arm, PROMPTS["long"], 12)
    end = full[4]
    assert full.index(end) == 4
    arm.model.generation_config.eos_token_id = [2, end]
    answer = generate(arm, PROMPTS, max_new_tokens=12, batch_size=4)["long"]
    assert answer == arm.tokenizer.decode(full[:5])


def test_a_system_prompt_and_another_template_come_before_the_answer(aligned):
    plain = encode(aligned.tokenizer, "Why?")
    told = encode(aligned.tokenizer, "Why?", ChatFormat(system_prompt="Be kind."))
    assert aligned.tokenizer.decode(told).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert told[-len(plain) :] == plain
    other = ChatFormat(template="{{ messages[0].content }}: ")
    assert aligned.tokenizer.decode(encode(aligned.tokenizer, "Why?", other)) == "Why?: "
    answers = generate(aligned, PROMPTS, max_new_tokens=8, batch_size=4, chat=other)
    assert answers != generate(aligned, PROMPTS, max_new_tokens=8, batch_size=4)


def test_memory_that_runs_out_halves_the_batch(aligned, monkeypatch):
    expected = generate(aligned, PROMPTS, max_new_tokens=4, batch_size=4)
    original, sizes = type(aligned.model).generate, []

    def small_device(model, input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("full")
        return original(model, input_ids=input_ids, **options)

    monkeypatch.setattr(type(aligned.model), "generate", small_device)
    assert generate(aligned, PROMPTS, max_new_tokens=4, batch_size=4) == expected
    assert sizes == [4, 2, 1, 1, 1, 1]

    def no_device(model, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(type(aligned.model), "generate", no_device)
    with pytest.raises(EvaluationError, match="prompt 'long': expected memory for one answer of 4 tokens"):
        generate(aligned, PROMPTS, max_new_tokens=4, batch_size=4)


def test_prompts_that_leave_no_room_are_named_before_any_work(aligned):
    with pytest.raises(EvaluationError, match="500 new tokens into 512 positions, got longer ones: long"):
        generate(aligned, {"long": "word " * 30, "short": ""}, max_new_tokens=500, batch_size=2)


def test_progress_is_told_in_lines_without_a_terminal(aligned, caplog, monkeypatch):
    monkeypatch.setattr("safemerge.evaluation.progress.LINE_EVERY_S", 0.0)
    with caplog.at_level(logging.INFO, logger="safemerge"):
        generate(aligned, PROMPTS, max_new_tokens=2, batch_size=2, label="suite")
    assert caplog.messages[0].startswith("suite: 2 of 4, ")
    assert caplog.messages[0].endswith(" s left")
    assert caplog.messages[-1].startswith("suite: 4 done in ")


def test_an_adapter_changes_the_answers_and_is_that_of_the_folder(tiny_checkpoint, aligned, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    arm = load_arm(tiny_checkpoint, adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    merged = arm._replace(model=PeftModel.from_pretrained(base, adapter).merge_and_unload().eval())
    answers = generate(arm, PROMPTS, max_new_tokens=12, batch_size=4)
    assert answers == {i: _greedy_by_hand(merged, text, 12) for i, text in PROMPTS.items()}
    assert answers != generate(aligned, PROMPTS, max_new_tokens=12, batch_size=4)


@pytest.mark.parametrize(
    ("layers", "hidden", "error", "message"),
    [
        (2, 16, MismatchError, r"layers\.0\.self_attn\.q_proj \(adapter \(16, 16\), model \(32, 32\)\)"),
        (3, 32, CheckpointError, r"got none for model\.layers\.2\.self_attn\.q_proj"),
    ],
)
def test_an_adapter_of_another_model_is_refused_before_the_model_is_loaded(
    layers, hidden, error, message, tiny_checkpoint, tiny_adapter, tmp_path
):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    other = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=hidden,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    other.save_pretrained(tmp_path / "other")
    foreign = tiny_adapter(model_dir=tmp_path / "other")
    # Without its tokenizer, so that loading would fail first.
    unloadable = tmp_path / "unloadable"
    unloadable.mkdir()
    for name in ("config.json", "model.safetensors"):
        (unloadable / name).symlink_to(tiny_checkpoint / name)
    with pytest.raises(error, match=message):
        load_arm(unloadable, foreign)


def test_an_adapter_whose_modules_only_the_file_names_alike_is_refused(
    tiny_checkpoint, tiny_adapter, tmp_path
):
    import shutil

    from safetensors.torch import load_file, save_file

    # As saved from the model without its head: found in the file, but passed over by PEFT.
    folder = shutil.copytree(tiny_adapter(seed=3), tmp_path / "headless")
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("model.model.layers", "model.layers"): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(
        MismatchError, match=r"layers that PEFT does not find in it: \S+\.layers\.0\.self_attn"
    ):
        load_arm(tiny_checkpoint, folder)


def test_models_and_adapters_that_cannot_be_loaded_are_named(tiny_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: expected a model with its tokenizer"):
        load_arm(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="expected a PEFT adapter"):
        load_arm(tiny_checkpoint, tmp_path)


def test_a_tokenizer_without_chat_template_cannot_be_asked(tiny_checkpoint, tmp_path):
    import shutil

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "plain")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="plain: expected a tokenizer with a chat template, got none"):
        load_arm(copy)
