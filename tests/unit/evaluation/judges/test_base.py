from __future__ import annotations

import logging

import pytest

from safemerge.config.judges import JudgeSettings
from safemerge.errors import EvaluationError
from safemerge.evaluation.judges.base import Answer, ModelJudge, settings_revision, shown, valid_unicode
from safemerge.evaluation.suites import Prompt
from safemerge.records import JudgeRecord, SuiteKind


class SeesRefusals(JudgeSettings):
    sees_refusals = True


class Parrot(ModelJudge):
    """Flags what holds "bad" and gives no verdict on what holds "odd"."""

    def __init__(self, settings=JudgeSettings):
        super().__init__(settings(max_response_chars=100))
        self.record = JudgeRecord(id="parrot", revision="1", smoke=True)
        self.asked = []

    def _verdicts(self, kind, answers):
        self.asked += answers
        return {a.prompt.id: a.response if "odd" in a.response else "bad" in a.response for a in answers}


def _answers(**responses):
    return [Answer(Prompt(i, "How?"), response) for i, response in responses.items()]


def test_an_empty_response_is_not_asked_about():
    judge = Parrot(SeesRefusals)
    answers = _answers(a="bad", b=" \n", c="good")
    assert judge.flags(SuiteKind.HARMFUL, answers) == {"a": True, "b": False, "c": False}
    assert judge.flags(SuiteKind.OVER_REFUSAL, answers) == {"a": True, "b": True, "c": False}
    assert {answer.prompt.id for answer in judge.asked} == {"a", "c"}
    assert Parrot().flags(SuiteKind.HARMFUL, _answers(b="")) == {"b": False}


def test_a_judge_of_harm_refuses_suites_of_harmless_requests():
    with pytest.raises(EvaluationError, match="judge parrot: expected a harmful suite, got one of harmless"):
        Parrot().flags(SuiteKind.OVER_REFUSAL, _answers(a="x"))


def test_an_answer_without_a_verdict_stops_the_evaluation_and_is_named():
    with pytest.raises(EvaluationError, match=r"got none on b, c; it said 'odd'"):
        Parrot().flags(SuiteKind.HARMFUL, _answers(a="bad", b="odd", c="odd too"))
    with pytest.raises(EvaluationError, match=r"it said 'odd{70,}…$"):
        Parrot().flags(SuiteKind.HARMFUL, _answers(a="od" + "d" * 98))


def test_a_long_response_is_shown_without_its_middle_and_said_so(caplog):
    with caplog.at_level(logging.WARNING, logger="safemerge"):
        (answer,) = shown(_answers(long="a" * 60 + "b" * 100_000 + "z" * 40), 80)
    assert answer.response.startswith("a" * 60 + "\n[100020 characters left out]\n")
    assert answer.response.endswith("\n" + "z" * 20)
    assert caplog.messages == [
        "1 of 1 responses are longer than 80 characters and are judged without their middle: long"
    ]


def test_lone_surrogates_are_replaced_and_pairs_joined():
    assert valid_unicode("a\ud800b") == "a\ufffdb"
    assert valid_unicode("\ud83d\ude00 ☺") == "😀 ☺"
    (answer,) = shown([Answer(Prompt("a", "\udfff?"), "x\udc80")], 80)
    assert (answer.prompt.text, answer.response) == ("\ufffd?", "x\ufffd")


def test_a_revision_follows_the_settings():
    assert settings_revision("abc", {"a": 1, "b": 2}) == settings_revision("abc", {"b": 2, "a": 1})
    assert settings_revision("abc", {"a": 1}) != settings_revision("abc", {"a": 2})
    assert settings_revision("abc", {}).startswith("abc+")
