from __future__ import annotations

from types import SimpleNamespace

import pytest

from safemerge.config.evaluation import EvaluationConfig
from safemerge.errors import MissingDependencyError
from safemerge.evaluation import libraries
from safemerge.evaluation.dependencies import (
    arm_dependencies,
    generation_protocol,
    measured_on,
    report_dependencies,
)
from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.suites import read_suite
from safemerge.gate import GatePolicy
from safemerge.records import json_digest

SERVER = {"engine": "endpoint", "endpoint": {"url": "http://127.0.0.1:1/v1", "models": {"aligned": "served"}}}
ARM = SimpleNamespace(engine="transformers", device="cpu", dtype="float32")


@pytest.fixture
def settings(tmp_path):
    """Makes settings of one suite, some of them other than usual."""

    def make(*, prompt="How?", file="suite.jsonl", utility=None, **others):
        path = tmp_path / file
        path.write_text(f'{{"id": "a", "prompt": "{prompt}"}}\n')
        return EvaluationConfig.model_validate(
            {
                "utility": {"task": "t", "metric": "acc"} | (utility or {}),
                "suites": [{"path": str(path), "name": "s", "kind": "harmful"}],
            }
            | others
        )

    return make


def report_digest(settings, **others):
    suites = [read_suite(suite) for suite in settings.suites]
    known = {"model_digest": "m", "adapter_digest": "a", "task_digest": "t"} | others
    return json_digest(report_dependencies(settings, suites, make_judges(settings), **known))


def test_a_report_depends_on_all_that_may_move_a_figure(settings):
    made = [
        report_digest(settings()),
        *(report_digest(settings(), **{name: "other"}) for name in ("model_digest", "task_digest")),
        report_digest(settings(), adapter_digest="other"),
        report_digest(settings(), adapter_digest=None),
        report_digest(settings(), task_digest=None),
        report_digest(settings(prompt="Why?")),
        report_digest(settings(utility={"metric": "acc_norm"})),
        report_digest(settings(generation={"max_new_tokens": 3})),
        report_digest(settings(sequential={})),
        report_digest(settings(**SERVER)),
    ]
    assert len(set(made)) == len(made)


def test_a_report_does_not_depend_on_where_its_data_lie(settings, tmp_path):
    there = settings(file="moved.jsonl", utility={"include_path": str(tmp_path)})
    assert report_digest(there) == report_digest(settings())


def test_a_report_without_utility_does_not_depend_on_what_utility_would_be(settings):
    other = settings(utility={"task": "other", "batch_size": 3})
    assert report_digest(other, task_digest=None) == report_digest(settings(), task_digest=None)


def test_limits_count_where_they_say_when_a_suite_is_stopped(settings):
    loose, strict = (GatePolicy(max_harmful_rate=limit, max_over_refusal_rate=0.5) for limit in (0.3, 0.1))
    assert report_digest(settings(), policy=loose) == report_digest(settings(), policy=strict)
    early = settings(sequential={})
    assert report_digest(early, policy=loose) != report_digest(early, policy=strict)


def test_versions_that_are_unknown_are_not_taken_for_none(settings, monkeypatch):
    known = settings()
    monkeypatch.setattr(libraries, "OPTIONAL", ("no_such_library",))
    with pytest.raises(MissingDependencyError, match="no_such_library"):
        report_digest(known)


def test_an_arm_depends_on_its_weights_on_how_it_answers_and_where(settings):
    def digest(settings, arm=ARM, **others):
        known = {"model_digest": "m", "adapter_digest": "a"} | others
        return json_digest(arm_dependencies(settings, arm, "aligned", **known))

    served = {"url": "http://127.0.0.1:1/v1", "models": {"aligned": "another"}}
    moved = {"url": "http://127.0.0.1:2/v1", "models": {"aligned": "served"}}
    made = [
        digest(settings()),
        digest(settings(), model_digest="other"),
        digest(settings(), adapter_digest=None),
        digest(settings(generation={"max_new_tokens": 3})),
        *(digest(settings(), SimpleNamespace(**vars(ARM) | {name: "other"})) for name in vars(ARM)),
        *(digest(settings(**SERVER | {"endpoint": of})) for of in (SERVER["endpoint"], served, moved)),
        digest(settings(**SERVER | {"endpoint": SERVER["endpoint"] | {"request": {"top_k": 1}}})),
    ]
    assert len(set(made)) == len(made)


def test_a_servers_address_says_where_and_is_no_protocol(settings):
    there = settings(**SERVER)
    assert measured_on(there, ARM)["endpoint"] == "http://127.0.0.1:1/v1"
    assert generation_protocol(there, ARM)["request"] == there.endpoint.request
    assert "endpoint" not in measured_on(settings(), ARM)
    assert "request" not in generation_protocol(settings(), ARM)
