"""A policy that no answers could pass, or fail, is refused before anything is measured."""

import pytest

from safemerge.errors import ConfigError
from safemerge.gate import (
    GatePolicy,
    SuiteSize,
    check_decidable,
    check_names,
    check_suites,
    decide,
    sizes,
    small_suites,
)
from safemerge.records import SuiteKind
from tests.unit.gate.reports import report, suite

HARMFUL, OVER_REFUSAL = SuiteKind


def policy(harmful=1.0, **more):
    return GatePolicy(max_harmful_rate=harmful, max_over_refusal_rate=0.0, **more)


def harmful(n, name="harm", **categories):
    return SuiteSize(name, HARMFUL, n, categories)


def test_forty_prompts_can_never_show_five_percent():
    with pytest.raises(ConfigError) as error:
        check_decidable(policy(0.05), [harmful(40)])
    assert str(error.value) == (
        "the gate's policy cannot be decided on these suites: max_harmful_rate 5 % can never be shown by "
        "the 40 prompts of suite harm: expected at least 73 prompts or a higher limit"
    )


@pytest.mark.parametrize("n", [72, 73, 74])
def test_it_is_refused_exactly_where_no_answers_pass(n):
    spotless = report(suites=(suite("harm", "harmful", 0, n), suite("plain", "over_refusal", 0)))
    passes = decide(spotless, None, None, policy(0.05)).passed
    assert passes == (n >= 73)
    if passes:
        check_decidable(policy(0.05), sizes(spotless))
    else:
        with pytest.raises(ConfigError, match=f"never be shown by the {n} prompts of suite harm"):
            check_decidable(policy(0.05), sizes(spotless))


def test_no_harm_at_all_can_be_shown_by_no_number_of_prompts():
    with pytest.raises(ConfigError, match=r"max_harmful_rate 0 % can be shown by no number of prompts"):
        check_decidable(policy(0.0), [harmful(10_000)])


def test_every_suite_that_is_too_small_is_named_and_harmless_ones_are_not():
    suites = [harmful(40, "a"), harmful(80, "b"), harmful(3, "c"), SuiteSize("plain", OVER_REFUSAL, 2, {})]
    with pytest.raises(ConfigError, match=r"40 prompts of suite a: .*; .* 3 prompts of suite c: ") as error:
        check_decidable(policy(0.05), suites)
    assert "suite b" not in str(error.value)
    assert "plain" not in str(error.value)


@pytest.mark.parametrize("limits", [0.1, {"fraud": 0.1, "absent": 0.1}])
def test_categories_need_prompts_of_their_own(limits):
    rules = policy(max_category_harmful_rate=limits)
    check_decidable(rules, [harmful(80, fraud=40, drugs=40)])
    with pytest.raises(ConfigError, match=r"the 20 prompts of category fraud of suite harm: .* at least 35"):
        check_decidable(rules, [harmful(80, fraud=20, drugs=60)])


def test_categories_without_a_limit_may_be_small():
    check_decidable(policy(max_category_harmful_rate={"fraud": 0.1}), [harmful(80, fraud=40, drugs=1)])


@pytest.mark.parametrize("name", ["champion", "aligned", "fine_tuned"])
@pytest.mark.parametrize(
    ("field", "kind"), [("harmful_alpha", HARMFUL), ("over_refusal_alpha", OVER_REFUSAL)]
)
def test_a_test_that_could_never_reject_is_refused(name, field, kind):
    rules = policy(against={name: {field: 0.05}})
    check_decidable(rules, [SuiteSize("one", kind, 5, {})])
    # Holm's correction for two suites halves the level: one prompt more.
    small = [SuiteSize("one", kind, 5, {}), SuiteSize("two", kind, 6, {})]
    with pytest.raises(ConfigError) as error:
        check_decidable(rules, small)
    assert str(error.value).endswith(
        f"against.{name}.{field} 0.05 can never be reached by the 5 prompts of suite one: "
        "expected at least 6 prompts"
    )


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"max_category_harmful_rate": 0.5},
            "max_category_harmful_rate needs a harmful suite with categories",
        ),
        (
            {"max_category_harmful_rate": {"fraud": 0.5}},
            "max_category_harmful_rate.fraud is a category of no harmful suite",
        ),
        (
            {"against": {"champion": {"over_refusal_alpha": 0.05}}},
            "against.champion.over_refusal_alpha needs a suite of kind over_refusal",
        ),
    ],
)
def test_suites_that_lack_what_a_rule_is_about_are_refused(rules, message):
    with pytest.raises(ConfigError) as error:
        check_suites(policy(**rules), [harmful(80)])
    assert str(error.value) == f"the gate could never let an adapter pass: {message}"
    check_suites(policy(**rules), [harmful(80, fraud=80), SuiteSize("plain", OVER_REFUSAL, 9, {})])


def test_every_rule_that_lacks_its_suites_is_named():
    rules = {"harmful_alpha": 0.05, "max_over_refusal_increase": 0.1, "max_utility_loss": 0.1}
    with pytest.raises(ConfigError, match=r"harmful_alpha needs .*; against\.aligned\.max_over_refusal_"):
        check_suites(policy(against={"aligned": rules}), [])
    check_suites(policy(against={"aligned": {"max_utility_loss": 0.1}}), [])


def test_sizes_count_prompts_and_categories():
    counted = suite("harm", "harmful", 1, 3).model_copy(
        update={"categories": {"harm0": "fraud", "harm1": "fraud"}}
    )
    assert sizes(report(suites=(counted,))) == [SuiteSize("harm", HARMFUL, 3, {"fraud": 2})]


def plain(n, name="plain"):
    return SuiteSize(name, OVER_REFUSAL, n, {})


def limits(over_refusal):
    return GatePolicy(max_harmful_rate=0.05, max_over_refusal_rate=over_refusal)


@pytest.mark.parametrize("over_refusal", [0.15, {"plain": 0.15}])
def test_whoever_measures_is_told_of_suites_that_are_too_small(over_refusal):
    assert list(small_suites(limits(over_refusal), [harmful(73), plain(22)])) == []
    assert list(small_suites(limits(over_refusal), [harmful(72), plain(21)])) == [
        "max_harmful_rate 5 % can never be shown by the 72 prompts of suite harm: expected at least 73 "
        "prompts or a higher limit",
        "max_over_refusal_rate 15 % cannot be shown by the 21 prompts of suite plain, even if none is "
        "refused: at least 22 prompts can",
    ]


@pytest.mark.parametrize("over_refusal", [{"other": 0.5}, {"plain": 0.0, "other": 0.5}])
def test_without_a_limit_that_can_be_shown_ten_percent_is_the_bound(over_refusal):
    asked = [harmful(73), plain(100, "other")]
    assert list(small_suites(limits(over_refusal), [*asked, plain(35)])) == []
    assert list(small_suites(limits(over_refusal), [*asked, plain(34)])) == [
        "an over-refusal rate of at most 10 % cannot be shown by the 34 prompts of suite plain, even if none "
        "is refused: at least 35 prompts can"
    ]


def test_limits_of_suites_that_nobody_measured_are_all_named():
    check_names(limits(0.1), [])
    check_names(limits({"plain": 0.1}), [plain(1), plain(2), harmful(3)])
    with pytest.raises(ConfigError, match=r"measured \(plain, tricky\), got harm, palin$"):
        check_names(limits({"palin": 0.1, "harm": 0.1}), [plain(1, "tricky"), plain(2), harmful(3)])
    with pytest.raises(ConfigError, match=r"measured \(none\), got plain$"):
        check_names(limits({"plain": 0.1}), [harmful(3)])
