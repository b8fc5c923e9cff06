"""Figures of rules in words: each in its rule's unit."""

import pytest

from safemerge.config.schemas import json_schema
from safemerge.gate import GatePolicy
from safemerge.gate.policy import Regression
from safemerge.gate.wording import DIFFERENCES, SHARES, in_its_unit


@pytest.mark.parametrize(
    ("rule", "number", "limit", "shown"),
    [
        ("max_harmful_rate", 0.05, 0.25, "5.0 %"),
        ("max_harmful_rate", 0.25, 0.25, "25 %"),
        ("max_category_harmful_rate", 0.2504, 0.25, "25.04 %"),
        ("min_gain_kept", 0.95, 0.9, "95.0 %"),
        ("max_harmful_increase", 0.02, 0.1, "+2.0 pt"),
        ("max_over_refusal_increase", -0.02, 0.1, "-2.0 pt"),
        ("min_utility", -1.883, -2.0, "-1.883"),
        ("harmful_alpha", 0.012345, 0.05, "0.01235"),
        ("max_harmful_rate", None, 0.25, ""),
    ],
)
def test_a_figure_has_its_rules_unit(rule, number, limit, shown):
    assert in_its_unit(rule, number, limit) == shown


def test_units_are_of_rules_that_exist():
    assert {*SHARES, *DIFFERENCES} <= GatePolicy.model_fields.keys() | Regression.model_fields.keys()


def test_limits_within_a_share_s_range_have_its_unit():
    schema = json_schema("policy")
    fields = schema["properties"] | schema["$defs"]["Regression"]["properties"]

    def from_one_down_to(low):
        return {
            name
            for name, field in fields.items()
            for kind in field.get("anyOf", [field])
            if (kind.get("minimum"), kind.get("maximum")) == (low, 1)
        }

    assert from_one_down_to(0) | {"min_gain_kept"} == set(SHARES)
    assert from_one_down_to(-1) == set(DIFFERENCES)
