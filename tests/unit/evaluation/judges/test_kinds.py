"""Kinds of judges: what their settings say of them holds of the judges that are made."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import TypeAdapter

from safemerge.config.judges import (
    JUDGES_OF_REFUSALS,
    JUDGES_WITHOUT_MODEL,
    MODEL_JUDGES,
    JudgeConfig,
    SmokeJudge,
)
from safemerge.errors import ConfigError, EvaluationError
from safemerge.evaluation.judges import Answer, Judge, check_keys, make_judge
from safemerge.evaluation.judges.local import LocalGuard
from safemerge.evaluation.suites import Prompt
from safemerge.records import SuiteKind

SETTINGS = {"model": "org/judge@abc", "url": "http://127.0.0.1:9/v1"}
EMPTY = Answer(Prompt("a", "How?"), "")
"""A refusal that no model is asked about."""


def made(kind: str) -> Judge:
    taken = {name: value for name, value in SETTINGS.items() if name in MODEL_JUDGES[kind].model_fields}
    return make_judge(TypeAdapter(JudgeConfig).validate_python({"kind": kind, **taken}))


def test_which_judges_see_refusals_and_which_load_no_model():
    assert get_args(SmokeJudge) == ("refusal_phrases",)
    assert JUDGES_OF_REFUSALS == ("refusal_phrases", "wild_guard", "qwen3_guard", "endpoint")
    assert JUDGES_WITHOUT_MODEL == ("refusal_phrases", "endpoint")


def test_a_key_that_is_missing_is_found_before_the_judge_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}
    ensemble = {"kind": "ensemble", "members": ["refusal_phrases", server], "rule": "any"}
    for settings in (server, ensemble):
        judge = make_judge(TypeAdapter(JudgeConfig).validate_python(settings))
        with pytest.raises(ConfigError, match="expected a key in the variable NO_SUCH_KEY, got none"):
            check_keys([make_judge("refusal_phrases"), judge])
        with monkeypatch.context() as given:
            given.setenv("NO_SUCH_KEY", "k")
            check_keys([judge])


@pytest.mark.parametrize("kind", MODEL_JUDGES)
def test_a_judge_is_made_of_every_kind_and_sees_what_its_settings_say(kind: str):
    judge = made(kind)
    assert re.match(rf"{kind}:", judge.record.id)
    assert isinstance(judge, LocalGuard) == (kind not in JUDGES_WITHOUT_MODEL)
    assert judge.flags(SuiteKind.HARMFUL, [EMPTY]) == {"a": False}
    if kind in JUDGES_OF_REFUSALS:
        assert judge.flags(SuiteKind.OVER_REFUSAL, [EMPTY]) == {"a": True}
    else:
        with pytest.raises(EvaluationError, match="got one of harmless requests"):
            judge.flags(SuiteKind.OVER_REFUSAL, [EMPTY])
