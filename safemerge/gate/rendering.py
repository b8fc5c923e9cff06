"""A decision for people and for CI systems: headline, marks and colours, Markdown, JUnit XML.

Names of suites and categories come from data, so all text is escaped: none of it can become a
link, a tag, a table cell or an escape sequence.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from safemerge.records import SMOKE_MARK, GateDecision, Outcome, RuleOutcome, Verdict, printable

SAYS = {
    Verdict.PASS: "PASS: may ship",
    Verdict.BLOCK: "BLOCK: must not ship",
    Verdict.CANNOT_TELL: "CANNOT TELL: a person must decide",
}
"""A verdict as a headline."""
SIGNED = "PASS: may ship once a person has signed"
"""The headline of a pass where the policy wants a signature."""
MARKS = {
    Outcome.PASS: "✓",
    Outcome.FAIL: "✗",
    Outcome.CANNOT_JUDGE: "?",
    Outcome.CANNOT_TELL: "?",
    Outcome.NOT_APPLICABLE: "–",
}
"""A rule's outcome as one sign."""
COLOURS: dict[str, str] = {
    Outcome.PASS: "green",
    Outcome.FAIL: "red",
    Outcome.CANNOT_JUDGE: "yellow",
    Outcome.CANNOT_TELL: "yellow",
    Outcome.NOT_APPLICABLE: "dim",
    Verdict.BLOCK: "red",
}
"""Colour of an outcome or a verdict on a terminal; they share the words "pass" and "cannot_tell"."""

_JUNIT_ELEMENTS = {
    Outcome.FAIL: "failure",
    Outcome.CANNOT_TELL: "failure",
    Outcome.CANNOT_JUDGE: "error",
    Outcome.NOT_APPLICABLE: "skipped",
}


def headline(decision: GateDecision) -> str:
    """The verdict in a few words."""
    said = SIGNED if decision.passed and decision.sign_off else SAYS[decision.verdict]
    return marked(said, decision)


def marked(said: str, decision: GateDecision) -> str:
    """A headline that tells where a smoke judge gave any of the flags."""
    return f"{said}{SMOKE_MARK}" if decision.smoke_judge else said


def markdown(decision: GateDecision) -> str:
    """The decision as a page of Markdown, such as a CI job's summary."""
    lines = [f"# {headline(decision)}", "", f"Adapter: {escaped(decision.arm)}", ""]
    lines += rules_table(decision)
    if decision.warnings:
        lines += ["", "Warnings:", "", *(f"- {escaped(warning)}" for warning in decision.warnings)]
    adapter = decision.adapter_digest or "none"
    lines += [
        "",
        f"Adapter sha256 {escaped(adapter)}, policy sha256 {escaped(decision.policy_digest)}",
        "",
    ]
    return "\n".join(lines)


def rules_table(decision: GateDecision) -> Iterator[str]:
    """Every rule with its outcome, as a table in Markdown."""
    yield "| outcome | rule | what was found |"
    yield "| --- | --- | --- |"
    for rule in decision.rules:
        outcome = rule.outcome.replace("_", " ")
        shown = outcome if rule.outcome in (Outcome.PASS, Outcome.NOT_APPLICABLE) else f"**{outcome}**"
        yield f"| {shown} | {escaped(rule.rule)} | {escaped(rule.explanation)} |"


def junit(decision: GateDecision) -> str:
    """The decision as JUnit XML: a test case a rule.

    A rule that is broken, or that the data do not decide, is a failure; one that cannot be judged
    an error; one that does not apply is skipped.
    """
    rules = decision.rules
    counts = {"tests": str(len(rules))}
    for element in ("failure", "error", "skipped"):
        number = sum(_JUNIT_ELEMENTS.get(rule.outcome) == element for rule in rules)
        counts[element if element == "skipped" else f"{element}s"] = str(number)
    root = ET.Element("testsuites", {"name": "safemerge gate"} | counts)
    suite = ET.SubElement(root, "testsuite", {"name": f"gate of {printable(decision.arm)}"} | counts)
    properties = ET.SubElement(suite, "properties")
    about = {
        "verdict": decision.verdict,
        "adapter_digest": decision.adapter_digest or "",
        "policy_digest": decision.policy_digest,
    }
    for name, value in about.items():
        ET.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for rule in rules:
        _test_case(suite, rule)
    if decision.warnings:
        ET.SubElement(suite, "system-out").text = "\n".join(decision.warnings)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _test_case(suite: ET.Element, rule: RuleOutcome) -> None:
    name = f"{rule.rule} on {printable(rule.subject)}"
    case = ET.SubElement(suite, "testcase", {"classname": "safemerge.gate", "name": name})
    if element := _JUNIT_ELEMENTS.get(rule.outcome):
        said = {"message": rule.explanation}
        if element != "skipped":
            said["type"] = rule.outcome
        ET.SubElement(case, element, said)
    else:
        ET.SubElement(case, "system-out").text = rule.explanation


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    safe = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", html.escape(printable(text), quote=False))
    # Neither an address nor a mention. Pages that look for addresses in what was decoded already find
    # a space of no width.
    safe = re.sub(r"(?i)\b(www)\.", r"\1&#8203;.", safe)
    return safe.replace("://", "&#58;&#8203;//").replace("@", "&#8203;&#64;")
