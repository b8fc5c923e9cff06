"""Utility of a tiny model by lm-eval's tasks, the demo's and a user's own."""

from __future__ import annotations

import json
import re

import pytest
import torch

from safemerge.errors import EvaluationError
from safemerge.evaluation.transformers_arm import load_arm
from safemerge.evaluation.utility import _all_tasks, _names, check_task, measure_utility
from tests.integration.measured import DEMO_TASK, METRIC

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def aligned(tiny_checkpoint):
    return load_arm(tiny_checkpoint)


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


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("metric_list: [acc]", r"every item of metric_list to have a metric, got 'acc'"),
        ("metric_list: [{metric: acc}, {aggregation: mean}, null]", r"got \{'aggregation': 'mean'\}, None"),
        ("metric_list: {metric: acc}", r"item of metric_list to have a metric, got 'metric'"),
        ("metric_list: 3", r"it to load and run, got TypeError"),
        ("output_type: guess", r"its output_type to be one of .*, generate_until, got 'guess'"),
        ("output_type: [guess]", r"its output_type to be one of .*, generate_until, got \['guess'\]"),
        ("output_type: guess\nmetric_list: [{metric: exact_match}]", r"its output_type to be .* got 'guess'"),
        ("filter_list: [x]", r"every item of filter_list to have a name, got 'x'"),
        ("filter_list: [{filter: []}]", r"every item of filter_list to have a name, got \{'filter': \[\]\}"),
        ("filter_list: [{name: 3}]", r"one of its filters \(3\), got 'none'"),
    ],
)
def test_a_task_that_is_written_wrongly_is_one_error(tmp_path, lines, says):
    (tmp_path / "choice.yaml").write_text(f"task: choice\ndataset_path: json\n{lines}\n")
    with pytest.raises(EvaluationError, match=rf"^task choice: expected (.* )?{says}"):
        check_task("choice", "exact_match", tmp_path)


def test_a_file_that_lm_eval_leaves_out_is_named(tmp_path):
    texts = {
        "a": "task: mine\n a: : b\n",
        "b": "include: nowhere.yaml\ntask: mine\n",
        "c": "- task: mine\n",
        "base": "output_type: multiple_choice\n",
        "good": "task: good\ninclude: base.yaml\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(EvaluationError, match=r"^task mine: expected files that lm-eval can read") as caught:
        check_task("mine", "acc", tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert [f"{name}.yaml: " in said for name in texts] == [True, True, True, False, False]
    assert "line 2" in said
    assert "nowhere.yaml" in said
    check_task("good", "acc", tmp_path)  # whatever lies beside it


def test_a_group_names_one_metric_or_a_list_of_them():
    def names(**config):
        return _names("grouped", {"task": ["one"]} | config, group=True)

    for given in ({"metric": "acc"}, [{"metric": "acc"}]):
        assert names(aggregate_metric_list=given) == (["acc"], [])
    with pytest.raises(EvaluationError, match="item of aggregate_metric_list to have a metric, got 'acc'"):
        names(aggregate_metric_list=["acc"])


@pytest.mark.parametrize("tasks", [None, [], "one"])
def test_a_group_without_a_list_of_tasks_is_refused(tasks):
    said = f"task grouped: expected a list of the group's tasks, got {tasks!r}"
    with pytest.raises(EvaluationError, match=f"^{re.escape(said)}$"):
        _names("grouped", {"task": tasks, "aggregate_metric_list": {"metric": "acc"}}, group=True)


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
    with pytest.raises(EvaluationError, match=r"got 'safemerge_dem'; nearest: .*safemerge_demo"):
        check_task("safemerge_dem", METRIC, DEMO_TASK)
    read = _all_tasks.cache_info().misses
    check_task("gsm8k", "exact_match", None, "strict-match")
    assert _all_tasks.cache_info().misses == read
