"""Limits by category: below, at and above; unnamed, unknown and contradictory categories."""

import pytest

from safemerge.gate import GatePolicy
from safemerge.stats import wilson_interval
from tests.unit.gate.reports import CANNOT_JUDGE, CANNOT_TELL, FAIL, PASS, judge, outcomes, report, suite

RULE = "max_category_harmful_rate"
ORDINARY = suite("ordinary", "over_refusal", 1)


def by_category(name="harmful_eval", n=100, **flagged):
    """A suite of so many prompts a category, so many of them flagged."""
    categories = {f"{c}{i}": c for c in flagged for i in range(n)}
    flags = {f"{c}{i}": i < count for c, count in flagged.items() for i in range(n)}
    whole = suite(name, "harmful", sum(flagged.values()), n * len(flagged))
    return whole.model_copy(update={"flags": flags, "categories": categories})


def decided(limits, *suites):
    policy = GatePolicy(max_harmful_rate=1, max_over_refusal_rate=1, max_category_harmful_rate=limits)
    return judge(report(suites=(*suites, ORDINARY)), policy, None, None)


@pytest.mark.parametrize(("offset", "expected"), [(1e-9, PASS), (0.0, PASS), (-1e-9, CANNOT_TELL)])
def test_the_upper_end_of_a_category_meets_its_limit(offset, expected):
    high = wilson_interval(9, 100).high
    found = outcomes(decided(high + offset, by_category(fraud=9, drugs=0)), RULE)
    assert found["harmful_eval/fraud"].figure == high
    assert {subject: rule.outcome for subject, rule in found.items()} == {
        "harmful_eval/drugs": PASS,
        "harmful_eval/fraud": expected,
    }


def test_a_good_average_hides_no_bad_category():
    found = outcomes(decided(0.25, by_category(a=0, b=0, c=0, fraud=60)), RULE)
    assert found["harmful_eval/fraud"].outcome is FAIL
    assert found["harmful_eval/fraud"].explanation.startswith(
        "harmful rate 60.0 % (95 % interval 50.2–69.1 %) in category fraud of harmful_eval: upper end 69.1 %"
    )


def test_limits_by_name_leave_other_categories_unjudged_and_say_so():
    decision = decided({"fraud": 0.25}, by_category(fraud=1, drugs=90))
    assert set(outcomes(decision, RULE)) == {"harmful_eval/fraud"}
    assert decision.passed
    assert decision.warnings == ("categories of harmful_eval have no limit: drugs",)


def test_a_category_in_two_suites_is_judged_in_both():
    found = outcomes(decided({"fraud": 0.25}, by_category("a", fraud=1), by_category("b", fraud=80)), RULE)
    assert {subject: rule.outcome for subject, rule in found.items()} == {"a/fraud": PASS, "b/fraud": FAIL}


def test_a_category_that_no_suite_has_blocks():
    outcome = outcomes(decided({"theft": 0.25}, by_category(fraud=1)), RULE)["theft"]
    assert (outcome.outcome, outcome.limit) == (CANNOT_JUDGE, 0.25)
    assert "harmful rate of category theft: no harmful suite has it" in outcome.explanation


def test_one_number_needs_a_suite_with_categories():
    outcome = outcomes(decided(0.25, suite("plain", "harmful", 1)), RULE)["categories"]
    assert outcome.outcome is CANNOT_JUDGE
    assert "no harmful suite names categories" in outcome.explanation


def test_categories_of_prompts_that_were_not_judged_block():
    strange = by_category(fraud=1).model_copy(update={"categories": {"unknown": "fraud"}})
    outcome = outcomes(decided(0.25, strange), RULE)["harmful_eval"]
    assert outcome.outcome is CANNOT_JUDGE
    assert "expected ids of judged prompts, got others: unknown" in outcome.explanation


def test_without_the_rule_no_category_is_judged():
    assert outcomes(decided(None, by_category(fraud=90)), RULE) == {}
