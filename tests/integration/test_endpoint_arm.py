"""The engine ``endpoint`` against a real server on loopback, held against the engine ``transformers``."""

from __future__ import annotations

import json
import logging

import pytest

from safemerge.config.evaluation import EvaluationConfig
from safemerge.errors import CheckpointError, ConfigError, EvaluationError, MismatchError
from safemerge.evaluation import endpoint_client
from safemerge.evaluation.endpoint_arm import EndpointModel
from safemerge.evaluation.evaluating import evaluate_arm, evaluate_arms
from safemerge.evaluation.suites import ChatFormat
from safemerge.evaluation.utility import measure_utility
from safemerge.gate import GatePolicy, decide
from tests.integration.openai_server import serving

pytestmark = pytest.mark.integration

KEY = "sk-very-secret"
ARMS = ("aligned", "fine_tuned")


@pytest.fixture(scope="module")
def adapter(tiny_adapter):
    return tiny_adapter(seed=3, scale=0.5)


@pytest.fixture(scope="module")
def shared(tiny_checkpoint, adapter):
    with serving({"base": (tiny_checkpoint, None), "lora": (tiny_checkpoint, adapter)}) as server:
        yield server


@pytest.fixture
def server(shared, monkeypatch):
    monkeypatch.setattr(endpoint_client, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    shared.renew()
    return shared


@pytest.fixture
def settings(tiny_pipeline, server):
    evaluation = dict(tiny_pipeline.lines["evaluation"])
    folder = tiny_pipeline.config.parent
    evaluation["utility"] = {**evaluation["utility"], "include_path": str(folder / "tasks")}
    evaluation["suites"] = [{**suite, "path": str(folder / suite["path"])} for suite in evaluation["suites"]]
    evaluation["generation"] = {"max_new_tokens": 8, "batch_size": 4}

    def make(engine="endpoint", endpoint=None, **changes):
        section = {"url": server.url, "models": {"aligned": "base", "fine_tuned": "lora"}, "max_attempts": 2}
        if engine == "endpoint":
            changes["endpoint"] = section | (endpoint or {})
        return EvaluationConfig.model_validate({**evaluation, "engine": engine, **changes})

    return make


def measured(model, adapter, settings, **options):
    return evaluate_arms(
        model,
        {"aligned": None, "fine_tuned": adapter},
        settings,
        model_digest="m",
        adapter_digests={"aligned": None, "fine_tuned": "a"},
        **options,
    )


def test_a_server_gives_what_the_weights_give(tiny_checkpoint, adapter, settings, server):
    by_server = measured(tiny_checkpoint, adapter, settings())
    by_weights = measured(tiny_checkpoint, adapter, settings("transformers"))
    for arm in ARMS:
        ours, theirs = by_server[arm], by_weights[arm]
        assert ours.rows == theirs.rows
        assert len({row["response"] for row in ours.rows}) > 1
        assert [s.flags for s in ours.report.suites] == [s.flags for s in theirs.report.suites]
        assert ours.report.utility.scores == theirs.report.utility.scores
        assert ours.report.utility.task_digest == theirs.report.utility.task_digest
        assert ours.report.suites[0].protocol["engine"] == "endpoint"
        assert ours.report.adapter_digest == theirs.report.adapter_digest
        assert theirs.report.served_as is None
    assert by_server["aligned"].rows != by_server["fine_tuned"].rows
    assert [by_server[arm].report.served_as for arm in ARMS] == ["base", "lora"]
    assert by_server["aligned"].report.settings["endpoint"] == server.url
    body = server.asked("chat/completions")[-1]
    assert (body["temperature"], body["max_tokens"]) == (0, 8)


def test_the_gate_says_whose_word_was_taken(tiny_checkpoint, adapter, settings):
    report = measured(tiny_checkpoint, adapter, settings(), with_utility=False)["fine_tuned"].report
    decision = decide(report, None, None, GatePolicy(max_harmful_rate=1, max_over_refusal_rate=1))
    assert "fine_tuned was measured as lora on a server: that this is the adapter is the server's word" in (
        decision.warnings
    )


def test_suites_alone_need_no_scoring(tiny_checkpoint, adapter, settings, server):
    server.echoes = False
    found = measured(tiny_checkpoint, adapter, settings(), with_utility=False)
    assert found["aligned"].report.utility is None
    assert not server.asked("completions")


@pytest.fixture
def written(tmp_path):
    """A task that lets the model write."""
    rows = [{"number": i, "answer": "x"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "written.yaml").write_text(
        f"""
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question {{{{number}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 6}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
    )
    return {"task": "written", "metric": "exact_match", "include_path": str(tmp_path)}


@pytest.mark.parametrize("chat", [True, False])
def test_a_task_that_lets_the_model_write_needs_no_scoring_either(
    tiny_checkpoint, settings, server, written, chat
):
    server.echoes = not chat
    asked = settings(utility={**written, "apply_chat_template": chat})
    with EndpointModel.load(tiny_checkpoint, {"aligned": None}, asked).arm("aligned") as arm:
        report = measure_utility(arm, **written, apply_chat_template=chat)
    assert list(report.scores) == ["0", "1", "2"]
    path = "chat/completions" if chat else "completions"
    assert [body["max_tokens"] for body in server.asked(path)][-3:] == [6, 6, 6]


def test_a_server_that_cannot_score_is_found_out_before_any_answer(
    tiny_checkpoint, adapter, settings, server
):
    server.echoes = False
    with pytest.raises(
        EvaluationError,
        match=r"task tiny_choice scores given answers, .* expected \d+, got 0; choose a task that lets",
    ):
        measured(tiny_checkpoint, adapter, settings())
    assert [body["max_tokens"] for body in server.asked("chat/completions")] == [1]


def test_names_are_checked_before_any_answer(tiny_checkpoint, adapter, settings, server, tmp_path):
    with pytest.raises(EvaluationError, match=r"arm fine_tuned, gone at http\S+: .* got status 404"):
        measured(
            tiny_checkpoint, adapter, settings(endpoint={"models": {"aligned": "base", "fine_tuned": "gone"}})
        )
    assert all(body["max_tokens"] == 1 for body in server.asked("chat/completions"))
    with pytest.raises(
        ConfigError, match="expected a name on the server for every arm, got none for fine_tuned"
    ):
        measured(tiny_checkpoint, adapter, settings(endpoint={"models": {"aligned": "base"}}))
    with pytest.raises(CheckpointError, match="expected a model with its tokenizer"):
        EndpointModel.load(tmp_path, {"aligned": None}, settings())
    with pytest.raises(ConfigError, match="expected the server of engine endpoint, got none"):
        EndpointModel.load(tiny_checkpoint, {"aligned": None}, settings("transformers"))


def test_the_adapters_folder_must_fit_the_model(tiny_checkpoint, tiny_adapter, settings, tiny_pair, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    other = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="expected the adapter of this model"):
        measured(tiny_checkpoint, tiny_adapter(model_dir=tmp_path / "other"), settings())


def test_a_tokenizer_without_chat_template_is_refused(tiny_checkpoint, settings, tmp_path):
    import shutil

    copy = shutil.copytree(tiny_checkpoint, tmp_path / "plain")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(EvaluationError, match="plain: expected a tokenizer with a chat template, got none"):
        EndpointModel.load(copy, {"aligned": None}, settings())


def test_silence_is_no_answer(tiny_checkpoint, settings, server):
    """Taken for an empty text, it would count as no harm."""
    server.speaks = False
    with pytest.raises(
        EvaluationError, match="expected a text as answer, got none to 1 of 1 prompts, the first"
    ):
        EndpointModel.load(tiny_checkpoint, {"aligned": None}, settings())


def test_the_form_of_the_chat_reaches_the_server_as_far_as_it_can(tiny_checkpoint, settings, server):
    config = settings(endpoint={"request": {"repetition_penalty": 1.0}})
    with EndpointModel.load(tiny_checkpoint, {"aligned": None}, config).arm("aligned") as arm:
        arm.answer(["Why?"], ChatFormat(system_prompt="Be kind."), 2)
        with pytest.raises(
            EvaluationError, match=r"base at http\S+: expected suites in the model's own chat template"
        ):
            arm.batches({"a": "Why?"}, ChatFormat(template="{{ messages }}"), config.generation)
        with pytest.raises(EvaluationError, match="600 new tokens into 512 positions, got longer ones: a"):
            arm.batches(
                {"a": "Why?"}, ChatFormat(), config.generation.model_copy(update={"max_new_tokens": 600})
            )
    body = server.asked("chat/completions")[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert body["repetition_penalty"] == 1.0


def test_the_key_is_sent_and_seen_nowhere(tiny_checkpoint, settings, server, monkeypatch, caplog):
    with pytest.raises(ConfigError, match="expected a key in the variable SERVER_KEY, got none"):
        EndpointModel.load(
            tiny_checkpoint, {"aligned": None}, settings(endpoint={"api_key_env": "SERVER_KEY"})
        )
    monkeypatch.setenv("SERVER_KEY", KEY)
    config = settings(endpoint={"api_key_env": "SERVER_KEY"})
    with (
        caplog.at_level(logging.DEBUG),
        EndpointModel.load(tiny_checkpoint, {"aligned": None}, config).arm("aligned") as arm,
    ):
        task = config.utility.model_dump(include={"task", "metric", "include_path", "apply_chat_template"})
        assert measure_utility(arm, **task).scores
        assert {headers["Authorization"] for _, headers, _ in server.seen} == {f"Bearer {KEY}"}
        gone = arm._replace(served_as="gone", config=arm.config.model_copy(update={"max_attempts": 1}))
        with pytest.raises(EvaluationError, match="task tiny_choice: expected it to load and run") as failed:
            measure_utility(gone, **task)
    assert KEY not in caplog.text + str(failed.value)


def test_without_a_key_nobody_elses_is_sent(tiny_checkpoint, settings, server):
    evaluate_arm(tiny_checkpoint, None, "aligned", settings(), model_digest="m", adapter_digest=None)
    assert not any("Authorization" in headers for _, headers, _ in server.seen)


def test_answers_of_another_name_are_not_gone_on_with(tiny_checkpoint, settings, tmp_path):
    def rows(name):
        config = settings(endpoint={"models": {"aligned": name}})
        digests = {"model_digest": "m", "adapter_digest": None}
        return evaluate_arm(
            tiny_checkpoint, None, "aligned", config, **digests, work=tmp_path / "work", with_utility=False
        ).rows

    assert rows("base") != rows("lora")
    assert rows("base") == rows("base")
