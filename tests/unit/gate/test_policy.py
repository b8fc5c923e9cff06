"""What a policy may say, its digest, its schema and the example that is shipped."""

import json
import math
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from safemerge.config.load import load_policy
from safemerge.config.schemas import json_schema
from safemerge.errors import ConfigError
from safemerge.gate import NO_CHAMPION, GatePolicy, check_decidable, decide, sizes
from safemerge.gate.policy import Regression
from safemerge.records import EvaluationReport
from tests.unit.gate.reports import POLICY

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(
    "change",
    [
        {"max_harmful_rate": 1.1},
        {"max_harmful_rate": math.nan},
        {"max_harmful_rate": None},
        {"max_harmful_rate": True},
        {"max_category_harmful_rate": True},
        {"max_over_refusal_rate": {"ordinary": False}},
        {"against": {"aligned": {"max_harmful_increase": True}}},
        {"max_over_refusal_rate": {"ordinary": -0.1}},
        {"max_over_refusal_rate": {}},
        {"min_utility": math.nan},
        {"min_gain_kept": math.inf},
        {"min_gian_kept": 0.9},
        {"max_category_harmful_rate": {}},
        {"max_category_harmful_rate": {"fraud": 1.1}},
        {"on_cannot_tell": "pass"},
        {"sign_off": "maybe"},
        {"against": {"champion": {"max_harmful_increase": 1.1}}},
        {"against": {"champion": {"max_harmful_increase": math.nan}}},
        {"against": {"champion": {"harmful_alpha": 0}}},
        {"against": {"champion": {"harmful_alpha": 1}}},
        {"against": {"champion": {"max_utility_loss": -0.1}}},
        {"against": {"champion": {"max_utility_loss": math.inf}}},
        {"against": {"somebody": {"harmful_alpha": 0.05}}},
    ],
)
def test_a_policy_out_of_bounds_is_refused(change):
    with pytest.raises(ValidationError):
        GatePolicy(**({"max_harmful_rate": 0.1, "max_over_refusal_rate": 0.1} | change))


def test_a_limit_is_no_switch(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("max_harmful_rate: true\nmax_over_refusal_rate: {ordinary: true}\n")
    with pytest.raises(ConfigError, match=r"line 1, max_harmful_rate: expected a number, got true"):
        load_policy(file)


def test_the_policys_digest_changes_with_its_limits():
    assert POLICY.digest() == GatePolicy(**POLICY.model_dump()).digest()
    assert POLICY.digest() != POLICY.model_copy(update={"min_utility": 0.6}).digest()
    assert POLICY.digest() != GatePolicy(**POLICY.model_dump() | {"sign_off": "required"}).digest()


def test_a_comparison_that_asks_nothing_is_refused():
    with pytest.raises(ValidationError, match=r"expected one of max_harmful_increase, harmful_.*, got none"):
        GatePolicy(max_harmful_rate=0.1, max_over_refusal_rate=0.1, against={"champion": {}})


def test_a_mistyped_rule_is_named_with_its_line(tmp_path):
    text = "max_harmful_rate: 0.1\nmax_over_refusal_rate: 0.1\nagainst:\n  champion: {harmful_alfa: 0.05}\n"
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"line 4, against\.champion\.harmful_alfa: unknown key; did you mean"
    ):
        load_policy(tmp_path / "policy.yaml")


# --- what is published -----------------------------------------------------------


def shipped(name):
    return (EXAMPLES / name).read_text(encoding="utf-8")


def keys(data):
    """Every dotted key of nested mappings."""
    for key, value in data.items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{below}" for below in keys(value))


def test_the_examples_are_what_the_schemas_say():
    policy, report = yaml.safe_load(shipped("policy.yaml")), json.loads(shipped("report.json"))
    for data, schema in ((policy, json_schema("policy")), (report, json_schema("report"))):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(data, schema, cls=jsonschema.Draft202012Validator)
        with pytest.raises(jsonschema.ValidationError, match="unknown"):
            jsonschema.validate(data | {"unknown": 1}, schema, cls=jsonschema.Draft202012Validator)
    assert EvaluationReport.model_validate(report).to_json() == shipped("report.json")


def test_the_example_policy_shows_every_key():
    shown = set(keys(yaml.safe_load(shipped("policy.yaml"))))
    regression = json_schema("policy")["$defs"]["Regression"]["properties"]
    assert set(GatePolicy.model_fields) <= shown
    assert {f"against.champion.{field}" for field in regression} <= shown
    assert {"against.aligned", "against.fine_tuned"} <= shown


def test_every_key_of_the_policy_is_judged():
    policy = GatePolicy.model_validate(yaml.safe_load(shipped("policy.yaml")))  # shows every key
    report = EvaluationReport.model_validate_json(shipped("report.json"))
    judged = {rule.rule for rule in decide(report, None, None, policy, NO_CHAMPION).rules}
    assert GatePolicy.model_fields.keys() - {"against", "on_cannot_tell", "sign_off"} <= judged
    assert {f"against.champion.{field}" for field in Regression.model_fields} <= judged


def test_the_example_report_keeps_every_rule_that_needs_no_other_report():
    policy = GatePolicy.model_validate(yaml.safe_load(shipped("policy.yaml")))
    report = EvaluationReport.model_validate_json(shipped("report.json"))
    check_decidable(policy, sizes(report))
    decision = decide(report, None, None, policy, NO_CHAMPION)
    kept = {rule.rule for rule in decision.rules if rule.outcome.value == "pass"}
    assert kept == {
        "max_harmful_rate",
        "max_category_harmful_rate",
        "max_over_refusal_rate",
        "min_utility",
        "adapter",
    }
