"""The suites as lm-eval tasks: the same documents, flags and rate as our own evaluation."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from safemerge.config.evaluation import SuiteConfig
from safemerge.config.suites import shipped_names, shipped_suite
from safemerge.evaluation import TASKS
from safemerge.evaluation.generation import generate
from safemerge.evaluation.harm import judge_suite
from safemerge.evaluation.judges import make_judge
from safemerge.evaluation.suites import read_suite
from safemerge.evaluation.tasks import suite_documents
from safemerge.evaluation.transformers_arm import load_arm

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def arm(tiny_checkpoint):
    """A model that answers some prompts with nothing, so that rates lie between 0 and 1."""
    made = load_arm(tiny_checkpoint)
    with torch.no_grad():
        weight = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 0.6
        made.model.lm_head.weight[made.tokenizer.eos_token_id] = weight
    return made


def _lm_eval(arm, task, include_path=TASKS, **metadata):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results = simple_evaluate(
        model=HFLM(pretrained=arm.model, tokenizer=arm.tokenizer, batch_size=32),
        tasks=[task],
        task_manager=TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata),
        gen_kwargs={"max_gen_toks": 8},
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    return results["results"][task], results["samples"][task]


@pytest.mark.parametrize("name", ["safemerge_harmful", "safemerge_ordinary"])
def test_lm_eval_gets_the_same_rate_as_our_own_evaluation(arm, name):
    suite = read_suite(SuiteConfig(suite=name))
    prompts = {prompt.id: prompt.text for prompt in suite.prompts}
    answers = generate(arm, prompts, max_new_tokens=8, batch_size=32)
    report = judge_suite(suite, answers, make_judge("refusal_phrases"), {"x": 1}).report
    assert 0 < report.rate < 1
    figures, samples = _lm_eval(arm, name)
    assert figures[f"{suite.kind}_rate,none"] == report.rate
    flags = {sample["doc"]["id"]: bool(sample[f"{suite.kind}_rate"]) for sample in samples}
    assert flags == report.flags
    assert {sample["doc"]["id"]: sample["doc"]["category"] for sample in samples} == report.categories


def test_a_task_takes_a_users_suite_and_judge(arm, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "How?"}\n', encoding="utf-8")
    spec = {"name": "mine", "title": "Mine", "kind": "harmful", "file": "rows.jsonl", "size": 2}
    text = yaml.safe_dump(spec | {"licence": "CC0-1.0", "citation": "me"})
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = {
        "include": str(TASKS / "_harmful_yaml"),
        "task": "my_task",
        "dataset_kwargs": {"suite": str(tmp_path / "mine.yaml")},
    }
    (folder / "my_task.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    nobody = {"kind": "endpoint", "url": "http://127.0.0.1:9", "model": "m", "max_attempts": 1}
    figures, _ = _lm_eval(arm, "my_task", folder)
    assert figures["harmful_rate,none"] in (0.0, 0.5, 1.0)
    documents = suite_documents.read(str(tmp_path / "mine.yaml"), judge=nobody)["test"]
    assert json.loads(documents[0]["judge"]) == nobody
    assert type(suite_documents._judge(documents[0]["judge"])).__name__ == "EndpointJudge"


def test_a_suite_that_brings_its_own_chat_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n', encoding="utf-8")
    spec = {"name": "mine", "title": "Mine", "kind": "harmful", "file": "rows.jsonl", "size": 1}
    more = {"licence": "CC0-1.0", "citation": "me", "system_prompt": "Be kind."}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec | more), encoding="utf-8")
    with pytest.raises(ValueError, match="expected no system prompt or template of its own"):
        suite_documents.read(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_suite_is_a_task_of_its_kind(name):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    task = name if name.startswith("safemerge_") else f"safemerge_{name}"
    config = manager.task_index[task].cfg
    assert config["dataset_kwargs"] == {"suite": name}
    assert [item["metric"] for item in config["metric_list"]] == [f"{shipped_suite(name).kind}_rate"]
    assert len(manager.all_subtasks) == len(shipped_names())
