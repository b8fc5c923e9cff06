"""Outcomes of rules, and figures in words that a release manager reads."""

from __future__ import annotations

from safemerge.records import Interval, Outcome, RuleOutcome

SHARES = ("max_harmful_rate", "max_category_harmful_rate", "max_over_refusal_rate", "min_gain_kept")
"""Rules whose figure is a share, shown in percent."""
DIFFERENCES = ("max_harmful_increase", "max_over_refusal_increase")
"""Rules whose figure is a difference of two shares, shown in percentage points."""


def judged(
    rule: str,
    subject: str,
    figure: float,
    limit: float,
    passed: bool,
    explanation: str,
    interval: Interval | None = None,
) -> RuleOutcome:
    """A rule about a figure that either keeps its limit or does not."""
    return RuleOutcome(
        rule=rule,
        subject=subject,
        figure=figure,
        limit=limit,
        outcome=Outcome.PASS if passed else Outcome.FAIL,
        explanation=explanation,
        interval=interval,
    )


def kept(rule: str, subject: str, explanation: str) -> RuleOutcome:
    """A rule that compares no figure, kept."""
    return RuleOutcome(
        rule=rule, subject=subject, figure=None, limit=None, outcome=Outcome.PASS, explanation=explanation
    )


def cannot_judge(rule: str, subject: str, limit: float | None, explanation: str) -> RuleOutcome:
    """A rule whose figure is missing, not finite or not comparable."""
    return _without_figure(rule, subject, limit, Outcome.CANNOT_JUDGE, f"cannot judge: {explanation}")


def cannot_tell(
    rule: str,
    subject: str,
    limit: float,
    explanation: str,
    figure: float | None = None,
    interval: Interval | None = None,
) -> RuleOutcome:
    """A rule that sound data do not decide."""
    return RuleOutcome(
        rule=rule,
        subject=subject,
        figure=figure,
        limit=limit,
        outcome=Outcome.CANNOT_TELL,
        explanation=f"cannot tell: {explanation}",
        interval=interval,
    )


def not_applicable(rule: str, subject: str, limit: float | None, explanation: str) -> RuleOutcome:
    """A rule with nothing to compare with, for a good reason."""
    return _without_figure(rule, subject, limit, Outcome.NOT_APPLICABLE, f"not applicable: {explanation}")


def percent(value: float, limit: float | None = None) -> str:
    """A share in percent, with enough decimals to show on which side of the limit it lies."""
    for decimals in range(1, 12):
        text = f"{100 * value:.{decimals}f}"
        if limit is None or value == limit or float(text) != round(100 * limit, decimals):
            break
    return f"{text} %"


def points(value: float, limit: float | None = None) -> str:
    """The number of percentage points between two rates, with its sign."""
    number = percent(value, limit).removesuffix(" %")
    return number if number.startswith("-") else f"+{number}"


def limit_in_percent(limit: float) -> str:
    """A limit as short as it was written."""
    return f"{100 * limit:g} %"


def in_its_unit(rule: str, number: float | None, limit: float | None) -> str:
    """A rule's figure or its limit for a table, in the rule's unit; empty where there is none.

    Args:
        rule: name of the policy field, without its section.
        number: what is shown.
        limit: the rule's limit.
    """
    if number is None:
        return ""
    if rule in DIFFERENCES:
        return f"{points(number, limit)} pt"
    if rule in SHARES:
        return limit_in_percent(number) if number == limit else percent(number, limit)
    return f"{number:.4g}"


def span(interval: Interval) -> str:
    """Both ends of an interval of a share."""
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %"


def stopped_after(n: int, planned: int, error: float) -> str:
    """That not all prompts were asked, and how likely that misleads.

    >>> stopped_after(40, 130, 0.01)
    'stopped after 40 of 130 prompts with an error of at most 1 %'
    """
    return f"stopped after {n} of {planned} prompts with an error of at most {limit_in_percent(error)}"


def too_few(n: int, needed: int | None, what: str) -> str:
    """How many more prompts or documents would decide a bound; ``needed`` is None where none would."""
    if needed is None:
        return "no sample decides a figure that equals its limit"
    return f"{n} {what} are too few, about {needed} would do if the figure stays"


def _without_figure(
    rule: str, subject: str, limit: float | None, outcome: Outcome, explanation: str
) -> RuleOutcome:
    return RuleOutcome(
        rule=rule, subject=subject, figure=None, limit=limit, outcome=outcome, explanation=explanation
    )
