"""Figures and texts in words."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.gate import GatePolicy, SignOff
from safemerge.records import Estimate, Interval
from safemerge.release import words
from safemerge.release.html import html
from safemerge.release.markdown import markdown
from tests.unit.release.samples import POLICY, answer, merge, release


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m", "a⟦1B⟧[31m"),
        ("\x00", "⟦00⟧"),
        ("\u202egpj.exe", "⟦202E⟧gpj.exe"),
        ("x\u200by", "x⟦200B⟧y"),
        ("\U000e0041", "⟦E0041⟧"),
        ("\ud800", "⟦D800⟧"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("é 😀 नमस्ते", "é 😀 नमस्ते"),
    ],
)
def test_what_hides_or_steers_is_named(text: str, shown: str) -> None:
    assert words.visible(text) == shown


def test_figures_that_could_not_be_had_are_not_invented() -> None:
    arm = release().candidate.model_copy(
        update={"utility": None, "gain_kept": None, "gain_note": "cannot tell: too few"}
    )
    assert (words.rate(None), words.utility(arm)) == ("–", "–")
    assert words.gain(arm) == "cannot tell: too few"
    assert words.utility(arm.model_copy(update={"utility": 0.5, "utility_interval": None})) == "0.5"


def test_a_share_has_its_interval() -> None:
    found = Estimate(value=0.951, interval=Interval(low=0.9, high=1.0), n=9)
    assert words.rate(found) == "95.1 % [90.0–100.0]"


def test_provenance_names_judges_adapters_and_the_policy() -> None:
    tables = dict(words.provenance(release()))
    assert tables["Judges"]["harmful"] == "refusal_phrases, revision 1, a smoke judge"
    assert tables["Adapters, sha256"]["aligned model"] == "none: the model alone"
    assert '"max_harmful_rate": 0.3' in tables["Policy"][""]
    assert tables["MLflow runs"] == {"gate": "0a1b2c"}


def test_a_category_says_on_how_many_prompts_each_of_its_rates_rests() -> None:
    """Arms that were stopped early were not asked as many: one number would be another arm's."""
    made = release()
    assert "| category 0 (n=20) |" in markdown(made)
    assert "category 0 <small>n=20</small>" in html(made)
    arms = list(made.arms)
    harmful, ordinary = arms[0].suites
    categories = harmful.categories | {
        "category 0": harmful.categories["category 0"].model_copy(update={"n": 9})
    }
    fewer = harmful.model_copy(update={"categories": categories})
    arms[0] = arms[0].model_copy(update={"suites": (fewer, ordinary)})
    made = made.model_copy(update={"arms": tuple(arms)})
    (line,) = (line for line in markdown(made).splitlines() if line.startswith("| category 0 |"))
    assert [cell.rpartition(" ")[2] for cell in line.strip("| ").split(" | ")[1:]] == ["n=9", *["n=20"] * 4]
    page = html(made)
    assert (page.count("<small>n=9</small>"), page.count("<small>n=20</small>")) == (1, 5)


def test_weights_that_each_layer_has_of_its_own_are_called_means() -> None:
    made = merge()
    assert words.weights(made).startswith("weights 0.6 of the task adapter and ")
    layers = (made.layers[0].model_copy(update={"weights": (0.5, 0.1)}), *made.layers[1:])
    said = words.weights(made.model_copy(update={"layers": layers}))
    assert said.startswith("weights of each layer, on average 0.6 of the task adapter and ")


def test_a_suite_that_was_stopped_early_says_how_many_were_asked() -> None:
    made = release()
    suite, other = made.candidate.suites[0], made.arms[0]
    assert words.asked(suite) == "n=40"
    stopped = suite.model_copy(update={"planned": 200})
    assert words.asked(stopped) == "n=40 of 200"
    assert words.rate_on(made.candidate, suite) == "15.0 % [7.1–29.1]"
    few = suite.model_copy(update={"rate": suite.rate.model_copy(update={"n": 30})})
    assert words.rate_on(made.candidate, few) == "15.0 % [7.1–29.1] n=40"
    assert words.rate_on(other.model_copy(update={"suites": ()}), suite) == "–"
    assert words.asked(suite.model_copy(update={"rate": None})) == ""


def test_a_sign_off_is_who_when_and_why_or_that_there_is_none() -> None:
    alone = release(transcripts=[])
    assert words.sign_off(alone) == "nobody was asked: the gate decided alone"
    asked = release(transcripts=[], policy=POLICY.model_copy(update={"sign_off": SignOff.REQUIRED}))
    assert words.sign_off(asked) == "a person decides, and nobody had answered when this was written"
    said = answer(approved=False, by="bob", reason="too close")
    answered = asked.model_copy(update={"answer": said})
    assert words.sign_off(answered) == "rejected by bob at 2026-01-02: too close"


FEW = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.2, on_cannot_tell="ask")
SIGN = POLICY.model_copy(update={"sign_off": SignOff.REQUIRED})


@pytest.mark.parametrize(
    ("policy", "said", "headline", "standing"),
    [
        (POLICY, None, "PASS: may ship", "pass"),
        (SIGN, None, "PASS: may ship once a person has signed", "cannot_tell"),
        (SIGN, {}, "PASS: may ship, signed by alice", "pass"),
        (SIGN, {"approved": False}, "NOT RELEASED: no person let it through", "block"),
        (SIGN, {"reason": ""}, "NOT RELEASED: no person let it through", "block"),
        (SIGN, {"approved": False, "by": None}, "NOT RELEASED: no person let it through", "block"),
        (FEW, None, "CANNOT TELL: a person must decide", "cannot_tell"),
        (FEW, {}, "CANNOT TELL: may ship, signed by alice", "pass"),
        (FEW, {"approved": False}, "NOT RELEASED: no person let it through", "block"),
        (FEW.model_copy(update={"max_harmful_rate": 0.01}), {}, "BLOCK: must not ship", "block"),
    ],
)
def test_the_headline_is_what_becomes_of_the_adapter(
    policy: GatePolicy, said: dict[str, Any] | None, headline: str, standing: str
) -> None:
    made = release(transcripts=[], policy=policy)
    made = made.model_copy(update={"answer": None if said is None else answer(**said)})
    assert words.headline(made) == f"{headline} (smoke judge)"
    assert words.standing(made) == standing
    sound = made.model_copy(update={"decision": made.decision.model_copy(update={"smoke_judge": False})})
    assert words.headline(sound) == headline
