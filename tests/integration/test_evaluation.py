from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

import pytest
import torch

from safemerge.config.judges import WildGuardConfig
from safemerge.config.models import EvaluationConfig, GenerationConfig, SuiteConfig, UtilityConfig
from safemerge.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DataError,
    EvaluationError,
    MismatchError,
    MissingDependencyError,
)
from safemerge.evaluation.arm import evaluate_arm
from safemerge.evaluation.generation import generate
from safemerge.evaluation.suites import ChatFormat
from safemerge.evaluation.transformers_arm import TransformersModel, encode, load_arm
from safemerge.evaluation.utility import check_task, measure_utility
from safemerge.records import EvaluationReport, SuiteKind

pytestmark = pytest.mark.integration

DEMO_TASK = Path(__file__).parents[2] / "safemerge" / "demo" / "task"
PROMPTS = {
    "short": "Why?",
    "long": "How do I fix a flat tyre on my bicycle when it rains and the pump is lost?",
    "medium": "Give me a short recipe for lentil soup.",
    "curly": "What’s a cactus? ☺",
}
METRIC = "answer_logprob_per_token"


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


# --- utility ---------------------------------------------------------------------


def _by_hand(arm, row):
    """Log-probability a token of one answer, by one forward pass; also its header's white space."""
    messages = [{"role": "user", "content": row["prompt"]}]
    context = arm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert context.endswith("<|im_start|>assistant\n")
    header = arm.tokenizer.encode(context, add_special_tokens=False)
    answer = arm.tokenizer.encode(row["response"], add_special_tokens=False)
    with torch.inference_mode():
        logits = arm.model(torch.tensor([header + answer])).logits[0].log_softmax(-1)
    steps = [float(logits[at - 1, token]) for at, token in enumerate(header + answer)][len(header) - 1 :]
    return sum(steps) / len(answer), sum(steps[1:]) / len(answer)


def test_the_demos_task_equals_a_direct_computation(aligned):
    rows = [
        json.loads(line)
        for line in (DEMO_TASK.parent / "data" / "task_dev.jsonl").read_text(encoding="utf-8").splitlines()
    ][:5]
    report = measure_utility(
        aligned, task="safemerge_demo_dev", metric=METRIC, include_path=DEMO_TASK, limit=5, batch_size=2
    )
    expected = [_by_hand(aligned, row) for row in rows]
    # fp32 sums over some two hundred tokens, padded differently.
    assert list(report.scores) == ["0", "1", "2", "3", "4"]
    assert list(report.scores.values()) == pytest.approx(
        [with_header for with_header, _ in expected], rel=1e-5
    )
    assert report.value == pytest.approx(sum(report.scores.values()) / 5)
    assert report.higher_is_better is True
    # All that is scored beside the answer is the one line break that ends the header.
    shares = [abs(a - b) / abs(b) for a, b in expected]
    assert 0 < max(shares) < 0.1


def test_both_splits_are_tasks_of_their_own(aligned):
    reports = [
        measure_utility(aligned, task=task, metric=METRIC, include_path=DEMO_TASK, limit=2)
        for task in ("safemerge_demo", "safemerge_demo_dev", "safemerge_demo_dev")
    ]
    digests = [report.task_digest for report in reports]
    assert digests[0] != digests[1] == digests[2]


TASK = """
task: {name}
custom_dataset: !function code.read
dataset_kwargs: {{rows: 4}}
test_split: test
output_type: {output_type}
doc_to_text: "Question {{{{number}}}}"
doc_to_target: "{{{{answer}}}}"
metadata: {{version: 1}}
"""
CHOICE = (
    "doc_to_choice: ['yes', 'no']\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
)
CODE = """
def read(rows, **_):
    from datasets import Dataset, DatasetDict
    answers = [{"number": i, "answer": ["yes", "no"][i % 2]} for i in range(rows)]
    return DatasetDict({"test": Dataset.from_list(answers)})

def nan(document, results):
    return {"score": float("nan") if document["number"] == 2 else 1.0}

def summed(values):
    return sum(values)

def one(document, results):
    return {"score": 1.0}

def broken(document, results):
    raise RuntimeError("no luck")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "code.py").write_text(CODE)
    tasks = {"choice": ("multiple_choice", CHOICE)}
    for function in ("nan", "one", "broken"):
        for aggregation in ("mean", "!function code.summed"):
            name = f"{function}_{aggregation.rsplit('.', 1)[-1]}"
            metrics = [f"{{metric: score, aggregation: {aggregation}, higher_is_better: false}}"]
            tail = f"process_results: !function code.{function}\nmetric_list: [{', '.join(metrics)}]\n"
            tasks[name] = ("loglikelihood", tail)
    for name, (output_type, tail) in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, output_type=output_type) + tail)
    (tmp_path / "until.yaml").write_text(
        TASK.format(name="until", output_type="generate_until")
        + "generation_kwargs: {until: ['.'], max_gen_toks: 4}\n"
        + "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return tmp_path


def test_a_users_own_task_is_measured(aligned, folder):
    report = measure_utility(aligned, task="choice", metric="acc", include_path=folder)
    assert set(report.scores) == {"0", "1", "2", "3"}
    assert report.value == sum(report.scores.values()) / 4
    assert measure_utility(aligned, task="choice", metric="acc", include_path=folder) == report
    assert measure_utility(aligned, task="until", metric="exact_match", include_path=folder).value == 0.0


def test_a_task_digest_follows_documents_code_and_template(aligned, folder):
    def digest(**options):
        return measure_utility(
            aligned, task="one_mean", metric="score", include_path=folder, **options
        ).task_digest

    before = digest()
    assert digest(batch_size=1) == before
    assert digest(limit=3) != before
    assert digest(apply_chat_template=False) != before
    code = folder / "code.py"
    code.write_text(CODE.replace('return {"score": 1.0}', 'return {"score": 2.0}'))
    assert digest() != before


def test_what_is_not_finite_has_no_value(aligned, folder):
    report = measure_utility(aligned, task="nan_mean", metric="score", include_path=folder)
    assert (report.value, report.scores, report.higher_is_better) == (None, {}, False)


def test_a_figure_that_is_no_mean_has_no_scores_to_resample(aligned, folder):
    mean = measure_utility(aligned, task="one_mean", metric="score", include_path=folder)
    total = measure_utility(aligned, task="one_summed", metric="score", include_path=folder)
    assert (mean.value, len(mean.scores)) == (1.0, 4)
    assert (total.value, total.scores) == (4.0, {})


def test_a_tasks_own_failure_is_named(aligned, folder):
    with pytest.raises(
        EvaluationError, match="task broken_mean: expected it to load and run, got RuntimeError: no"
    ):
        measure_utility(aligned, task="broken_mean", metric="score", include_path=folder)


def test_memory_that_runs_out_halves_the_batch_of_a_task(aligned, folder, monkeypatch):
    expected = measure_utility(aligned, task="choice", metric="acc", include_path=folder)
    original = type(aligned.model).forward

    def small_device(model, input_ids, **options):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("full")
        return original(model, input_ids=input_ids, **options)

    monkeypatch.setattr(type(aligned.model), "forward", small_device)
    report = measure_utility(aligned, task="choice", metric="acc", include_path=folder, batch_size=8)
    assert report.scores == expected.scores


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    def check(*arguments):
        check_task(*arguments[:2], DEMO_TASK, *arguments[2:])

    check("safemerge_demo", METRIC)
    with pytest.raises(EvaluationError, match=rf"\({METRIC}\), got 'answer_logprob'; nearest: {METRIC}"):
        check("safemerge_demo", "answer_logprob")
    with pytest.raises(EvaluationError, match=r"one of its filters \(none\), got 'strict'"):
        check("safemerge_demo", METRIC, "strict")
    with pytest.raises(EvaluationError, match="expected a folder with lm-eval tasks, got none"):
        check_task("safemerge_demo", METRIC, tmp_path / "none")


@pytest.mark.slow
def test_lm_evals_own_tasks_are_known_by_name():
    check_task("gsm8k", "exact_match", None, "strict-match")
    check_task("mmlu", "acc")
    with pytest.raises(EvaluationError, match=r"got 'gsm8q'; nearest: .*gsm8k"):
        check_task("gsm8q", "exact_match")
    with pytest.raises(EvaluationError, match=r"filters .*strict-match.*got 'none'"):
        check_task("gsm8k", "exact_match")
    with pytest.raises(EvaluationError, match="a tag of several: name one of arc_challenge, arc_easy"):
        check_task("ai2_arc", "acc")


# --- the whole arm ---------------------------------------------------------------


@pytest.fixture
def settings(tmp_path):
    suites = []
    for kind in SuiteKind:
        path = tmp_path / f"{kind}.jsonl"
        rows = [{"id": i, "prompt": text, "category": "c"} for i, text in PROMPTS.items()]
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        suites.append(SuiteConfig(name=f"s_{kind}", kind=kind, path=str(path)))
    return EvaluationConfig(
        utility=UtilityConfig(
            task="safemerge_demo_dev", metric=METRIC, include_path=str(DEMO_TASK), limit=3, batch_size=3
        ),
        suites=tuple(suites),
        generation=GenerationConfig(max_new_tokens=8, batch_size=4),
    )


def test_an_arm_is_measured_whole_and_reports_round_trip(tiny_checkpoint, adapter, settings, tmp_path):
    def run():
        return evaluate_arm(
            tiny_checkpoint, adapter, "fine_tuned", settings, model_digest="m", adapter_digest="a"
        )

    evaluation = run()
    report = evaluation.report
    assert (report.arm, report.model_digest, report.adapter_digest) == ("fine_tuned", "m", "a")
    # A random model neither refuses nor stays silent.
    harmful, harmless = report.suites
    assert (harmful.rate, harmless.rate) == (1.0, 0.0)
    assert harmful.interval.low < harmful.interval.high == 1.0
    assert harmful.judge.smoke
    assert harmful.protocol == harmless.protocol
    assert harmful.protocol == {"engine": "transformers", "decoding": "greedy", "max_new_tokens": 8}
    assert report.utility.protocol == {
        "engine": "transformers",
        "filter": "none",
        "num_fewshot": [0],
        "chat_template": True,
        "limit": 3,
        "seed": 1234,
    }
    assert report.utility.value < 0
    assert math.isfinite(report.utility.value)
    assert [row["id"] for row in evaluation.rows] == list(PROMPTS) * 2
    assert all(row["flag"] is report.suites[n // 4].flags[row["id"]] for n, row in enumerate(evaluation.rows))
    assert report.settings["dtype"] == ("float32" if report.settings["device"] == "cpu" else "bfloat16")
    (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
    assert EvaluationReport.read(tmp_path / "report.json") == report
    assert run() == evaluation


def test_wrong_settings_are_found_before_the_model_is_loaded(settings, tmp_path):
    def run(changed):
        evaluate_arm(tmp_path / "no_model", None, "x", changed, model_digest="m", adapter_digest=None)

    unknown = settings.utility.model_copy(update={"metric": "acc"})
    with pytest.raises(EvaluationError, match="got 'acc'"):
        run(settings.model_copy(update={"utility": unknown}))
    loose = settings.model_copy(update={"judge": WildGuardConfig(kind="wild_guard", model="org/guard")})
    with pytest.raises(ConfigError, match="org/guard: expected a folder or name@revision"):
        run(loose)
    gone = settings.suites[0].model_copy(update={"path": str(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        run(settings.model_copy(update={"suites": (gone,)}))
    with pytest.raises(CheckpointError, match="no_model"):
        run(settings)


def test_judging_begins_once_the_arm_is_gone(tiny_checkpoint, settings, monkeypatch):
    import weakref

    from safemerge.evaluation import transformers_arm
    from safemerge.evaluation.judges.refusal_phrases import RefusalPhrases

    loaded, alive, released = [], [], []

    class WatchedModel(TransformersModel):
        def __init__(self, model, *arguments):
            super().__init__(model, *arguments)
            loaded.append(weakref.ref(model))

    class Watching(RefusalPhrases):
        def flags(self, kind, answers, journal=None):
            alive.append(loaded[0]() is not None)
            return super().flags(kind, answers, journal)

        def release(self):
            released.append(True)

    monkeypatch.setattr(transformers_arm, "TransformersModel", WatchedModel)
    monkeypatch.setattr("safemerge.evaluation.judges.RefusalPhrases", Watching)
    report = evaluate_arm(tiny_checkpoint, None, "a", settings, model_digest="m", adapter_digest=None).report
    assert alive == [False, False]
    assert released
    assert report.suites[0].categories == dict.fromkeys(PROMPTS, "c")


# --- the command -----------------------------------------------------------------


@pytest.fixture
def pipeline(settings, tiny_pair, tmp_path):
    training = {"data": [{"path": "train.jsonl"}], "steps": 1}
    config = {
        "name": "tiny",
        "aligned_model": str(tiny_pair.aligned),
        "unaligned_model": str(tiny_pair.unaligned),
        "task_training": training,
        "safety_training": training,
        "evaluation": settings.model_dump(mode="json"),
        "gate": {"max_harmful_rate": 0.2, "max_over_refusal_rate": 0.2},
        "tracking": {"registered_model": "tiny"},
    }
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _command(*arguments):
    from typer.testing import CliRunner

    from safemerge.cli.main import app

    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def test_the_command_writes_the_report_and_every_answer(pipeline, adapter, tmp_path):
    from safemerge.storage.adapters import adapter_digest

    result = _command(
        "--config", pipeline, "--adapter", adapter, "--arm", "mine", "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    report = EvaluationReport.read(tmp_path / "out" / "report.json")
    assert (report.arm, report.adapter_digest) == ("mine", adapter_digest(adapter))
    lines = (tmp_path / "out" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == list(PROMPTS.values()) * 2
    for shown in ("100.0 % of 4", "smoke judge", "higher is better", f"{report.utility.value:.4f}"):
        assert shown in result.stdout


@pytest.mark.parametrize("library", ["transformers", "peft", "lm_eval"])
def test_a_library_that_is_missing_is_named_first(library, settings, tmp_path, monkeypatch):
    # What an import finds where a package is not installed, down to find_spec.
    monkeypatch.setitem(sys.modules, library, None)
    result = _command("--config", tmp_path / "unread.yaml", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (4, "")
    expected = f"error: {library} is not installed: pip install 'safemerge[evaluation]'"
    assert " ".join(result.stderr.split()) == expected
    with pytest.raises(MissingDependencyError, match=f"{library} is not installed"):
        evaluate_arm(tmp_path, None, "x", settings, model_digest="m", adapter_digest=None)


def test_the_command_leaves_nothing_behind_when_it_fails(pipeline, adapter, tmp_path):
    (tmp_path / "there").mkdir()
    for arguments, message in (
        (("--output", tmp_path / "there"), "expected a path that does not exist yet"),
        (("--output", tmp_path / "x", "--arm", "mine"), "--arm mine: expected --adapter beside it"),
        (("--output", tmp_path / "x", "--arm", "aligned", "--adapter", adapter), "expected another name"),
        (("--output", tmp_path / "x", "--adapter", "org/aligned"), "expected another name for org/aligned"),
        (("--output", tmp_path / "x", "--adapter", tmp_path), "expected a PEFT adapter"),
    ):
        result = _command("--config", pipeline, *arguments)
        assert result.exit_code == 4
        assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*x*/report.json"))
    assert not list((tmp_path / "there").iterdir())
