"""Judges in a pipeline's YAML file: which are read, which cannot judge what they are asked."""

from __future__ import annotations

import json

import pytest
import yaml

from safemerge.config.load import load_pipeline
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.schemas import json_schema
from safemerge.errors import ConfigError
from safemerge.records import SuiteKind
from tests.unit.pipelines import PIPELINE

GUARD = {"kind": "llama_guard", "model": "meta-llama/Llama-Guard-3-8B@abc"}


@pytest.fixture
def read(tmp_path):
    def _read(**evaluation):
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(PIPELINE | {"evaluation": PIPELINE["evaluation"] | evaluation}))
        return load_pipeline(path)

    return _read


def test_refusal_phrases_judge_where_nothing_is_said(read):
    evaluation = read().evaluation
    assert evaluation.judge == evaluation.refusal_judge == "refusal_phrases"
    assert read(judge="refusal_phrases").evaluation == evaluation


def test_a_guard_is_read_and_refusals_stay_with_the_phrases(read):
    evaluation = read(judge={**GUARD, "exclude": ["S6"], "threshold": 0.4}).evaluation
    assert (evaluation.judge.exclude, evaluation.judge.threshold) == (("S6",), 0.4)
    assert evaluation.judge_of(SuiteKind.HARMFUL) is evaluation.judge
    assert evaluation.judge_of(SuiteKind.OVER_REFUSAL) == "refusal_phrases"


def test_a_guards_folder_counts_from_the_files_folder_in_ensembles_too(read, tmp_path):
    local = {"kind": "wild_guard", "model": "./guards/wild"}
    ensemble = {"kind": "ensemble", "rule": "any", "members": [local, GUARD]}
    config = read(judge=ensemble, refusal_judge=local).evaluation
    assert config.refusal_judge.model == str(tmp_path / "guards" / "wild")
    assert [m.model for m in config.judge.members] == [config.refusal_judge.model, GUARD["model"]]


def test_a_config_with_judges_survives_json(read):
    config = read(judge={"kind": "ensemble", "rule": "any", "members": [GUARD, "refusal_phrases"]})
    assert PipelineConfig.model_validate(json.loads(config.model_dump_json())) == config
    assert "llama_guard" in json.dumps(json_schema("pipeline"))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"refusal_judge": GUARD}, "expected a refusal_judge that sees refusals .* got llama_guard"),
        (
            {"refusal_judge": {"kind": "ensemble", "rule": "any", "members": ["refusal_phrases", GUARD]}},
            "got llama_guard, which sees harm alone",
        ),
        (
            {"judge": "oracle"},
            r"evaluation\.judge: expected refusal_phrases, or settings whose kind is one of llama_guard, .*, "
            r"endpoint, ensemble, got 'oracle'$",
        ),
        ({"judge": "llamaguard"}, r"got 'llamaguard'; did you mean kind: llama_guard\?$"),
        (
            {"judge": {"kind": "wildguard", "model": "x"}},
            r"got 'wildguard'; did you mean kind: wild_guard\?$",
        ),
        ({"judge": "qwen3_guard"}, r"got 'qwen3_guard'; did you mean kind: qwen3_guard\?$"),
        ({"judge": "refusal_phrase"}, r"got 'refusal_phrase'; did you mean refusal_phrases\?$"),
        ({"judge": {"model": "x"}}, r"evaluation\.judge: expected refusal_phrases, .* got no kind$"),
        (
            {"judge": {"kind": "ensemble", "members": ["refusal_phrases", GUARD, {"kind": "ensemble"}]}},
            r"evaluation\.judge\.members\.2: expected .* granite_guardian, endpoint, got 'ensemble'",
        ),
        ({"judge": {"kind": "oracle"}}, r"evaluation\.judge.*llama_guard.*oracle"),
        ({"judge": {**GUARD, "treshold": 0.4}}, r"judge\.treshold: unknown key; did you mean threshold\?"),
        (
            {"judge": {"kind": "endpoint", "url": "http://h/v1", "model": "m", "concurency": 2}},
            r"judge\.concurency: unknown key; did you mean concurrency\?",
        ),
        (
            {"judge": {"kind": "ensemble", "rule": "any", "members": [GUARD, {**GUARD, "exclud": []}]}},
            r"judge\.members\.1\.exclud: unknown key; did you mean exclude\?",
        ),
        ({"judge": {"kind": "llama_guard"}}, r"judge\.model: expected a value, got nothing"),
        ({"judge": {**GUARD, "exclude": ["S15"]}}, r"judge\.exclude\.0: .*got 'S15'"),
        ({"judge": {**GUARD, "threshold": 1.0}}, r"judge\.threshold: .*less than 1, got 1\.0"),
        (
            {"judge": {"kind": "endpoint", "model": "m", "url": "http://user:pass@host/v1"}},
            r"judge\.url: expected a text that matches",
        ),
        ({"judge": {"kind": "endpoint", "model": "m", "url": "file:///etc/x"}}, r"judge\.url: expected"),
    ],
)
def test_what_cannot_judge_is_refused_in_place(read, evaluation, message):
    with pytest.raises(ConfigError, match=message):
        read(**evaluation)
