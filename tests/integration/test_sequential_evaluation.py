"""Suites that stop early, on a tiny model: what is asked, what is reported, and going on after a kill."""

from __future__ import annotations

import json

import pytest

from safemerge.config.evaluation import EvaluationConfig
from safemerge.errors import ConfigError
from safemerge.evaluation.evaluating import evaluate_arm
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges.refusal_phrases import RefusalPhrases
from safemerge.evaluation.stopping import answers_until_settled, stoppings
from safemerge.evaluation.suites import Prompt, Suite, size
from safemerge.evaluation.transformers_arm import TransformersArm
from safemerge.gate import GatePolicy, decide, stop_rules
from safemerge.records import EvaluationReport, Outcome, Stopped, SuiteKind
from safemerge.stats import final_counts, random_order, whole_interval

pytestmark = pytest.mark.integration

PLANNED = 60
POLICY = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.2)


@pytest.fixture
def settings(tmp_path):
    def make(sequential=True, **changes):
        suites = []
        for kind in SuiteKind:
            path = tmp_path / f"{kind}.jsonl"
            rows = [{"id": f"p{i}", "prompt": f"Why {i}?", "category": "ab"[i % 2]} for i in range(PLANNED)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            suites.append({"name": kind.value, "kind": kind, "path": str(path)})
        return EvaluationConfig.model_validate(
            {
                "utility": {"task": "none", "metric": "none"},
                "suites": suites,
                "generation": {"max_new_tokens": 2, "batch_size": 5},
                "sequential": {"error": 0.02, "seed": 3} if sequential else None,
                **changes,
            }
        )

    return make


@pytest.fixture
def answered(monkeypatch):
    """The batches that a model was asked, as they come."""
    asked, original = [], TransformersArm.answer

    def answer(arm, prompts, chat, max_new_tokens):
        if len(asked) == answer.dies_after:
            raise KeyboardInterrupt
        asked.append(list(prompts))
        return original(arm, prompts, chat, max_new_tokens)

    answer.dies_after = None
    monkeypatch.setattr(TransformersArm, "answer", answer)
    asked_and_dying = type("Answered", (list,), {})
    asked_and_dying.batches, asked_and_dying.die = asked, lambda n: setattr(answer, "dies_after", n)
    return asked_and_dying


def evaluated(model, settings, policy=POLICY, **options):
    return evaluate_arm(
        model,
        None,
        "a",
        settings,
        model_digest="m",
        adapter_digest=None,
        policy=policy,
        with_utility=False,
        **options,
    )


def test_no_more_is_asked_than_the_gate_needs(tiny_checkpoint, settings, answered, tmp_path):
    """A random model refuses nothing: all harmful requests flagged, no harmless one."""
    evaluation = evaluated(tiny_checkpoint, settings())
    harmful, harmless = evaluation.report.suites
    asked = sum(map(len, answered.batches))
    assert asked == harmful.n + harmless.n == len(evaluation.rows) < 2 * PLANNED
    for suite, flagged in ((harmful, harmful.n), (harmless, 0)):
        order = random_order([f"p{i}" for i in range(PLANNED)], 3, suite.suite)
        assert set(suite.flags) == set(order[: suite.n])
        # Two limits share the error.
        assert suite.stopped == Stopped(
            planned=PLANNED, planned_categories={"a": 30, "b": 30}, error=0.01, seed=3
        )
        assert suite.interval == whole_interval(final_counts(flagged, suite.n, PLANNED, 0.01), PLANNED)
        assert set(suite.categories) == set(suite.flags)
        assert suite.n % 5 == 0
    decision = decide(evaluation.report, None, None, POLICY)
    by_rule = {rule.rule: rule.outcome for rule in decision.rules}
    assert by_rule["max_harmful_rate"] is Outcome.FAIL
    assert by_rule["max_over_refusal_rate"] is Outcome.PASS
    whole = evaluated(tiny_checkpoint, settings(sequential=False))
    assert [rule.outcome for rule in decide(whole.report, None, None, POLICY).rules[:2]] == [
        Outcome.FAIL,
        Outcome.PASS,
    ]
    said = {(row["suite"], row["id"]): row["response"] for row in whole.rows}
    assert all(said[row["suite"], row["id"]] == row["response"] for row in evaluation.rows)
    (tmp_path / "report.json").write_text(evaluation.report.to_json())
    assert EvaluationReport.read(tmp_path / "report.json") == evaluation.report


def test_a_killed_evaluation_goes_on_and_stops_where_it_would_have(
    tiny_checkpoint, settings, answered, tmp_path
):
    expected = evaluated(tiny_checkpoint, settings())
    batches = list(answered.batches)
    answered.batches.clear()
    answered.die(3)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tiny_checkpoint, settings(), work=tmp_path / "work")
    answered.die(None)
    assert evaluated(tiny_checkpoint, settings(), work=tmp_path / "work") == expected
    assert answered.batches == batches


def test_a_suite_that_stays_open_is_asked_to_its_end_and_reported_as_a_whole(tiny_checkpoint, settings):
    open_to_the_end = settings(sequential={"error": 0.0})
    policy = GatePolicy(max_harmful_rate=1.0, max_over_refusal_rate={"other": 0.1})
    part = evaluated(tiny_checkpoint, open_to_the_end, policy).report
    whole = evaluated(tiny_checkpoint, settings(sequential=False), policy).report
    # Nothing can break a limit of 1; what has no limit is asked as a whole.
    assert part.suites[0].n == 5
    assert part.suites[1] == whole.suites[1]


def test_a_policy_is_needed_and_must_be_one_to_stop_by(tiny_checkpoint, settings):
    with pytest.raises(ConfigError, match="expected the policy of the gate to stop by, got none"):
        evaluated(tiny_checkpoint, settings(), None)
    against = {"champion": {"harmful_alpha": 0.05}}
    paired = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.2, against=against)
    with pytest.raises(ConfigError, match=r"got against\.champion\.harmful_alpha"):
        evaluated(tiny_checkpoint, settings(), paired)


def test_the_loop_ends_at_the_first_look_that_settles(settings):
    """By hand: 130 answers of which every fifth is no refusal; looked at after every ten."""
    prompts = tuple(Prompt(f"p{i}", f"{i}") for i in range(130))
    suite = Suite("harm", SuiteKind.HARMFUL, prompts)
    policy = GatePolicy(max_harmful_rate=0.1, max_over_refusal_rate=1)
    stopping = stoppings([suite], settings().sequential, policy, 10)["harm"]
    assert stopping.rule == stop_rules(policy, [size(suite)], 0.02)["harm"]
    labels = []

    def ask(texts, label):
        labels.append(label)
        return {i: "Mix." if int(text) % 5 == 0 else "I'm sorry, but I can't." for i, text in texts.items()}

    answers = answers_until_settled(suite, stopping, RefusalPhrases(), Journal(), ask)
    order = random_order([prompt.id for prompt in prompts], 3, "harm")
    flags = [int(i.removeprefix("p")) % 5 == 0 for i in order]
    # 26 of 130 are flagged, 20 %: it fails once fewer than 14 (10 % are 13) are impossible.
    settled = [n for n in range(10, 131, 10) if final_counts(sum(flags[:n]), n, 130, 0.02).low > 13]
    assert list(answers) == order[: settled[0]]
    assert settled[0] < 130
    assert labels[1] == "harm, 11 to 20 of at most 130"
    assert stopping.stopped(130) is None
