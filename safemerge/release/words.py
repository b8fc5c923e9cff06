"""Figures and texts of the report in words, and texts that hide something made visible."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from safemerge.gate import rendering
from safemerge.records import (
    Estimate,
    GateDecision,
    Interval,
    MergeReport,
    Outcome,
    RuleOutcome,
    SuiteKind,
    Verdict,
)
from safemerge.reports.release import ArmFigures, ReleaseReport, Role, SuiteFigures

NOTHING = "–"

FLAG_WORDS = {
    SuiteKind.HARMFUL: {True: "complied", False: "did not comply"},
    SuiteKind.OVER_REFUSAL: {True: "refused", False: "answered"},
}
"""What a flag means, and what none means."""

_HIDDEN = re.compile(
    # C0 and C1 controls but tab and line feed; marks that turn the direction of writing; halves of
    # characters; tags, which are letters that nobody sees.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""The text with a name in place of every character that steers, hides or reorders.

    >>> visible("a\x1b[31mb")
    'a⟦1B⟧[31mb'
    """
    return _HIDDEN.sub(lambda found: f"⟦{ord(found[0]):02X}⟧", text.replace("\r\n", "\n"))


def headline(report: ReleaseReport) -> str:
    """What becomes of the adapter, in a few words: the verdict, and what a person said who decides."""
    decision, answer = report.decision, report.answer
    if answer is None or not decision.wants_person:
        return rendering.headline(decision)
    said = "NOT RELEASED: no person let it through"
    if answer.valid:
        said = f"{'PASS' if decision.passed else 'CANNOT TELL'}: may ship, signed by {answer.by}"
    return rendering.marked(said, decision)


def standing(report: ReleaseReport) -> Verdict:
    """The same in one word: no pass as long as a person who decides has not let the adapter through."""
    if not report.decision.wants_person:
        return report.decision.verdict
    if report.answer is None:
        return Verdict.CANNOT_TELL
    return Verdict.PASS if report.answer.valid else Verdict.BLOCK


def missed(decision: GateDecision) -> list[RuleOutcome]:
    """The rules that keep a verdict from being a pass."""
    return [r for r in decision.rules if r.outcome not in (Outcome.PASS, Outcome.NOT_APPLICABLE)]


def sign_off(report: ReleaseReport) -> str:
    """Who answered for the release, when and why; or that nobody did."""
    if report.answer is not None:
        return report.answer.says()
    if report.decision.wants_person:
        return "a person decides, and nobody had answered when this was written"
    return "nobody was asked: the gate decided alone"


def rate(estimate: Estimate | None) -> str:
    """A share with its interval.

    >>> rate(Estimate(value=0.5, interval=Interval(low=0.4, high=0.6), n=90))
    '50.0 % [40.0–60.0]'
    """
    if estimate is None:
        return NOTHING
    low, high = estimate.interval.low, estimate.interval.high
    return f"{100 * estimate.value:.1f} % [{100 * low:.1f}–{100 * high:.1f}]"


def asked(suite: SuiteFigures) -> str:
    """How many prompts a rate rests on."""
    if suite.rate is None:
        return ""
    return f"n={suite.rate.n}" + (f" of {suite.planned}" if suite.planned > suite.rate.n else "")


def rate_on(arm: ArmFigures, suite: SuiteFigures) -> str:
    """An arm's rate on a suite of the candidate, with its prompts where they are not as many."""
    found = next((other for other in arm.suites if other.suite == suite.suite), None)
    if found is None or found.rate is None:
        return NOTHING
    alike = suite.rate is not None and suite.rate.n == found.rate.n
    return rate(found.rate) + ("" if alike else f" {asked(found)}")


def shared_n(rates: Iterable[Estimate | None]) -> int | None:
    """How many prompts each of several rates rests on; None where these are not as many."""
    numbers = {rate.n for rate in rates if rate is not None}
    return numbers.pop() if len(numbers) == 1 else None


def utility(arm: ArmFigures) -> str:
    """The utility with its interval."""
    if arm.utility is None:
        return NOTHING
    return f"{arm.utility:.4g}{_span(arm.utility_interval)}"


def gain(arm: ArmFigures) -> str:
    """The gain kept with its interval, or what stands for it."""
    if arm.role in (Role.ALIGNED, Role.FINE_TUNED):
        return "0 %" if arm.role is Role.ALIGNED else "100 %"
    return rate(arm.gain_kept) if arm.gain_kept else arm.gain_note


def _span(interval: Interval | None) -> str:
    return f" [{interval.low:.4g} to {interval.high:.4g}]" if interval else ""


def weights(merge: MergeReport) -> str:
    """By what the two adapters were weighed; of layers that have weights of their own, the mean."""
    task, safety = merge.weights
    of_each = " of each layer, on average" if any(layer.weights for layer in merge.layers) else ""
    return f"weights{of_each} {task:.4g} of the task adapter and {safety:.4g} of the safety adapter"


def without_layers(report: ReleaseReport) -> str:
    """How to see the layers of a repaired adapter of whose merge nothing was said; empty for any other."""
    unrepaired = {None, *(arm.adapter_digest for arm in report.arms if arm.role is Role.FINE_TUNED)}
    if report.merge is not None or report.candidate.adapter_digest in unrepaired:
        return ""
    return (
        "Made without --merge: safemerge report shows here which layers were merged, and their cosines, "
        "once --merge names the candidate's folder or the report of its merge."
    )


def provenance(report: ReleaseReport) -> list[tuple[str, dict[str, str]]]:
    """Headings, each with names and what they are."""
    known = report.provenance
    judges = {
        suite.suite: f"{suite.judge.id}, revision {suite.judge.revision}"
        + ("" if suite.judge.threshold is None else f", threshold {suite.judge.threshold:g}")
        + (", a smoke judge" if suite.judge.smoke else "")
        for suite in report.candidate.suites
    }
    adapters = {arm.title: arm.adapter_digest or "none: the model alone" for arm in report.arms}
    return [
        ("Models", known.models),
        ("Training data", {role: ", ".join(sources) for role, sources in known.datasets.items()}),
        ("Seeds", {role: str(seed) for role, seed in known.seeds.items()}),
        ("Judges", judges),
        ("How it was measured", {name: _listed(protocol) for name, protocol in known.protocols.items()}),
        ("Where it was measured", {name: str(value) for name, value in known.settings.items()}),
        ("Policy", {"": json.dumps(report.policy, ensure_ascii=False)}),
        ("Adapters, sha256", adapters),
        ("Digests, sha256", known.digests),
        ("MLflow runs", known.runs),
    ]


def _listed(values: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
