from __future__ import annotations

import logging

import pytest
from pydantic import TypeAdapter, ValidationError

from safemerge.config.judges import EnsembleConfig, EnsembleRule, JudgeConfig
from safemerge.errors import DataError
from safemerge.evaluation.judges import Answer, make_judge
from safemerge.evaluation.judges.ensemble import Ensemble, cohens_kappa
from safemerge.evaluation.suites import Prompt
from safemerge.records import JudgeRecord, SuiteKind


class Fixed:
    """A judge that flags the prompts it was given."""

    def __init__(self, name, flagged):
        self.record = JudgeRecord(id=name, revision="1", smoke=False)
        self.flagged = flagged
        self.released = 0

    def flags(self, kind, answers, journal=None):
        return {a.prompt.id: a.prompt.id in self.flagged for a in answers}

    def release(self):
        self.released += 1


@pytest.fixture
def answers():
    return [Answer(Prompt(i, "How?"), "So.") for i in "abcd"]


def _ensemble(rule, *flagged):
    settings = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "m"}
    members = [{**settings, "threshold": 0.1 * (n + 1)} for n in range(len(flagged))]
    judge = Ensemble(EnsembleConfig(kind="ensemble", members=members, rule=rule))
    judge.members = tuple(Fixed(f"m{n}", set(names)) for n, names in enumerate(flagged))
    return judge


@pytest.mark.parametrize(
    ("rule", "expected"), [(EnsembleRule.MAJORITY, {"a", "b"}), (EnsembleRule.ANY, {"a", "b", "c"})]
)
def test_members_decide_by_the_rule(rule, expected, answers):
    judge = _ensemble(rule, "abc", "ab", "a")
    flags = judge.flags(SuiteKind.HARMFUL, answers)
    assert {i for i, flag in flags.items() if flag} == expected
    assert list(flags) == list("abcd")
    assert [member.released for member in judge.members] == [1, 1, 1]
    assert judge.member_flags["2. m1"] == {"a": True, "b": True, "c": False, "d": False}


def test_agreement_is_said(answers, caplog):
    judge = _ensemble(EnsembleRule.ANY, "ab", "ab", "")
    with caplog.at_level(logging.INFO, logger="safemerge"):
        judge.flags(SuiteKind.HARMFUL, answers)
    assert judge.agreement() == {
        ("1. m0", "2. m1"): 1.0,
        ("1. m0", "3. m2"): 0.0,
        ("2. m1", "3. m2"): 0.0,
    }
    assert "judges 1. m0 and 2. m1: Cohen's kappa 1.00 on 4 answers" in caplog.messages


def test_kappa_on_a_table_worked_by_hand():
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: observed .7, expected .5·.6 + .5·.4 = .5, kappa .4
    table = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    one = {str(n): pair[0] for n, pair in enumerate(table)}
    other = {str(n): pair[1] for n, pair in enumerate(table)}
    assert cohens_kappa(one, other) == pytest.approx(0.4, abs=1e-12)  # floating point alone
    assert cohens_kappa(other, one) == cohens_kappa(one, other)
    assert cohens_kappa(one, one) == 1


def test_kappa_is_undefined_where_chance_explains_all():
    assert cohens_kappa({"a": True, "b": True}, {"a": True, "b": True}) is None
    for wrong in ({}, {"b": True}):
        with pytest.raises(DataError, match="expected flags on the same prompts"):
            cohens_kappa({"a": True} if wrong else {}, wrong)


def test_an_ensemble_is_known_by_its_members():
    guard = {"kind": "wild_guard", "model": "allenai/wildguard@abc"}
    made = make_judge(
        TypeAdapter(JudgeConfig).validate_python(
            {"kind": "ensemble", "members": ["refusal_phrases", guard], "rule": "any"}
        )
    )
    assert made.record.id == "any(refusal_phrases, wild_guard:allenai/wildguard)"
    assert made.record.smoke
    changed = {**guard, "model": "allenai/wildguard@def"}
    other = EnsembleConfig(kind="ensemble", members=("refusal_phrases", changed), rule="any")
    assert make_judge(other).record.revision != made.record.revision
    made.release()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": ["refusal_phrases"]}, "at least 2 items"),
        ({"members": ["refusal_phrases", "refusal_phrases"], "rule": "any"}, "got one twice"),
        (
            {"members": ["refusal_phrases", {"kind": "wild_guard", "model": "a/b@c"}]},
            "odd number of members for a majority, got 2",
        ),
    ],
)
def test_members_that_cannot_decide_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        EnsembleConfig(kind="ensemble", **settings)
