"""Reports for the gate's tests, made from counts; whatever is stated overrides a figure unchecked."""

from safemerge.gate import GatePolicy, decide
from safemerge.records import EvaluationReport, JudgeRecord, Outcome, SuiteKind, SuiteReport, UtilityReport
from safemerge.stats import wilson_interval

JUDGE = JudgeRecord(id="a_judge", revision="1", smoke=False)
SMOKE = JudgeRecord(id="refusal_phrases", revision="1", smoke=True)
GENERATION = {"decoding": "greedy", "max_new_tokens": 64}
PASS, FAIL, CANNOT_JUDGE, CANNOT_TELL, NOT_APPLICABLE = Outcome


def suite(name, kind, flagged, n=100, *, judge=JUDGE, digest=None, **stated):
    """A report of ``flagged`` flags among n prompts; ``stated`` overrides its figures unchecked."""
    flags = {f"{name}{i}": i < flagged for i in range(n)}
    figures = {
        "suite": name,
        "kind": SuiteKind(kind),
        "judge": judge,
        "prompts_digest": digest or name,
        "protocol": GENERATION,
        "rate": flagged / n if n else None,
        "interval": wilson_interval(flagged, n) if n else None,
    }
    return SuiteReport.model_construct(flags=flags, **(figures | stated))


def utility(mean, *, n=100, spread=0.1, higher_is_better=True, **stated):
    scores = {f"d{i}": mean + spread * (i % 2 - 0.5) for i in range(n)}
    figures = {"task": "sums", "metric": "score", "value": mean, "scores": scores, "task_digest": "t"}
    figures |= {"protocol": {"filter": "none", "num_fewshot": [0], "limit": None}}
    return UtilityReport.model_construct(higher_is_better=higher_is_better, **(figures | stated))


def report(arm="safemerge", harmful=5, ordinary=2, mean=0.58, **stated):
    figures = {
        "arm": arm,
        "adapter_digest": None if arm == "aligned" else "a",
        "model_digest": "m",
        "utility": utility(mean),
        "suites": (suite("harmful_eval", "harmful", harmful), suite("ordinary", "over_refusal", ordinary)),
    }
    return EvaluationReport.model_construct(**(figures | stated))


ALIGNED = report("aligned", harmful=0, ordinary=1, mean=0.4)
FINE_TUNED = report("fine_tuned", harmful=40, ordinary=0, mean=0.6)
POLICY = GatePolicy(max_harmful_rate=0.25, max_over_refusal_rate=0.1, min_utility=0.5, min_gain_kept=0.9)


def outcomes(decision, rule):
    return {outcome.subject: outcome for outcome in decision.rules if outcome.rule == rule}


def only(decision, rule):
    (outcome,) = (outcome for outcome in decision.rules if outcome.rule == rule)
    return outcome


def judge(candidate, policy=POLICY, aligned=ALIGNED, fine_tuned=FINE_TUNED, **champion):
    """Decide, and check that the decision is a pass only where every rule that applies passed."""
    decision = decide(candidate, aligned, fine_tuned, policy, **champion)
    assert decision.rules
    assert decision.passed == all(outcome.outcome in (PASS, NOT_APPLICABLE) for outcome in decision.rules)
    assert type(decision).model_validate_json(decision.to_json()) == decision
    return decision
