"""Markdown and JUnit XML: what they say, and that hostile names stay text."""

from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from safemerge.gate import NO_CHAMPION, GatePolicy, decide
from safemerge.gate.rendering import junit, markdown
from safemerge.records import Outcome, RuleOutcome, printable
from tests.unit.gate.reports import SMOKE, judge, report, suite

HOSTILE = (
    "]]><script>alert(1)</script>|`x`\x1b[31m\x00\ud800\u202e&amp;![i](http://evil/x.png) @everyone\r\n# big"
)


def decision(**figures):
    """One rule of every outcome."""
    policy = GatePolicy(
        max_harmful_rate=0.25,
        max_over_refusal_rate={"ordinary": 0.5, "gone": 0.5},
        against={"champion": {"harmful_alpha": 0.05}},
    )
    suites = suite("broken", "harmful", 90), suite("few", "harmful", 20), suite("ordinary", "over_refusal", 0)
    return judge(report(suites=suites, **figures), policy, None, None, champion=NO_CHAMPION)


def test_junit_counts_and_names_every_rule():
    root = ET.fromstring(junit(decision()))  # noqa: S314 (our own)
    counts = {"tests": "6", "failures": "2", "errors": "1", "skipped": "1"}
    (whole,) = root
    for element in (root, whole):
        assert {name: element.get(name) for name in counts} == counts
    assert (root.tag, whole.tag, whole.get("name")) == ("testsuites", "testsuite", "gate of safemerge")
    cases = {case.get("name"): case for case in whole.iter("testcase")}
    assert {name: [child.tag for child in case] for name, case in cases.items()} == {
        "max_harmful_rate on broken": ["failure"],
        "max_harmful_rate on few": ["failure"],
        "max_over_refusal_rate on gone": ["error"],
        "max_over_refusal_rate on ordinary": ["system-out"],
        "against.champion.harmful_alpha on champion": ["skipped"],
        "adapter on candidate": ["system-out"],
    }
    failure = cases["max_harmful_rate on few"][0]
    assert failure.get("type") == "cannot_tell"
    assert failure.get("message").startswith("cannot tell: harmful rate 20.0 %")
    found = {item.get("name"): item.get("value") for item in whole.iter("property")}
    assert found == {"verdict": "block", "adapter_digest": "a", "policy_digest": decision().policy_digest}


def test_junit_of_a_pass_has_no_failure():
    policy = GatePolicy(max_harmful_rate=0.25, max_over_refusal_rate=0.1)
    root = ET.fromstring(junit(judge(report(), policy, None, None)))  # noqa: S314 (our own)
    assert (root.get("failures"), root.get("errors"), root.get("skipped")) == ("0", "0", "0")
    assert not list(root.iter("failure"))


def test_markdown_leads_with_the_verdict_and_has_a_row_a_rule():
    text = markdown(decision())
    lines = text.splitlines()
    assert lines[0] == "# BLOCK: must not ship"
    assert text.endswith("\n")
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert rows[2].startswith(r"| **fail** | max\_harmful\_rate | harmful rate 90.0 % ")
    assert any(row.startswith("| not applicable | against.champion.harmful\\_alpha | ") for row in rows)
    assert "Warnings" not in text


def test_markdown_says_that_a_pass_wants_a_signature():
    policy = GatePolicy(max_harmful_rate=0.25, max_over_refusal_rate=0.1, sign_off="required")
    text = markdown(judge(report(), policy, None, None))
    assert text.startswith("# PASS: may ship once a person has signed\n")


def test_markdown_names_a_smoke_judge_and_warnings():
    text = markdown(decision().model_copy(update={"smoke_judge": True, "warnings": ("look here",)}))
    assert text.startswith("# BLOCK: must not ship (smoke judge)\n")
    assert "\nWarnings:\n\n- look here\n" in text


def hostile():
    """A decision about suites and an arm with the names that an attacker would choose."""
    suites = (
        suite(HOSTILE, "harmful", 90, judge=SMOKE.model_copy(update={"id": HOSTILE})),
        suite("ordinary", "over_refusal", 0),
    )
    policy = GatePolicy(max_harmful_rate=0.25, max_over_refusal_rate=0.5)
    # Half a character cannot be written as JSON, so the decision is not read back here.
    return decide(report(arm=HOSTILE, suites=suites), None, None, policy)


def test_hostile_names_break_no_junit():
    text = junit(hostile())
    text.encode("utf-8")
    root = ET.fromstring(text)  # noqa: S314 (our own)
    assert [case.get("classname") for case in root.iter("testcase")] == 3 * ["safemerge.gate"]
    assert not list(root.iter("script"))
    assert all(character.isprintable() or character == "\n" for character in text)


def test_hostile_names_stay_text_in_markdown():
    text = markdown(hostile())
    text.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {token.type for block in tokens for token in (block, *(block.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "fence"}
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # A cell more would be a bar that is not escaped.
    assert all(row.replace(r"\|", "").count("|") == 4 for row in rows)
    assert sum(token.type == "heading_open" for token in tokens) == 1
    assert "://" not in text
    assert "@everyone" not in text


def test_hostile_names_steer_no_terminal():
    blocked = hostile()
    said = [blocked.summary(), *blocked.warnings, *(rule.explanation for rule in blocked.rules)]
    assert all(text.isprintable() for text in said)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n b\t c", "a b c"),
        ("\x1b[31mred", "\ufffd[31mred"),
        ("\u202egpj", "\ufffdgpj"),
        ("é – µ", "é – µ"),
    ],
)
def test_what_steers_a_terminal_is_replaced(text, shown):
    assert printable(text) == shown


def test_an_explanation_is_printable_wherever_it_comes_from():
    stored = RuleOutcome(
        rule="r", subject="s", figure=None, limit=None, outcome=Outcome.FAIL, explanation="a\x1b[2Jb"
    )
    assert stored.explanation == "a\ufffd[2Jb"
