"""A release for tests: five arms on two suites, the answers to them, and how the candidate was merged."""

from __future__ import annotations

from typing import Any

from safemerge.gate import NO_CHAMPION, GatePolicy, decide
from safemerge.records import (
    Approval,
    EvaluationReport,
    GateDecision,
    JudgeRecord,
    LayerReport,
    MergeReport,
    SuiteKind,
    SuiteReport,
    UtilityReport,
)
from safemerge.release.assembling import release_report
from safemerge.release.transcripts import gather
from safemerge.reports.release import Provenance, ReleaseReport, Transcript
from safemerge.stats import wilson_interval

N = 40
FLAGGED = {"aligned": 2, "fine_tuned": 30, "candidate": 6, "scale": 1, "scale_selected": 5}
MEANS = {"aligned": 0.4, "fine_tuned": 0.6, "candidate": 0.59, "scale": 0.5, "scale_selected": 0.58}
POLICY = GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate=0.2, min_gain_kept=0.9)
PROVENANCE = Provenance(
    created="2026-01-02 03:04:05 UTC",
    safemerge_version="0",
    name="support-bot",
    models={"aligned_model": "org/model-instruct@abc123", "unaligned_model": "/models/plain"},
    datasets={"task_training": ("/data/task.jsonl", "org/safe-answers@def456")},
    seeds={"task_training": 0},
    runs={"gate": "0a1b2c"},
)


def suite(name: str, kind: SuiteKind, flagged: int, tail: str = "") -> SuiteReport:
    """The first so many prompts flagged; ``tail`` ends every id and category."""
    return SuiteReport(
        suite=name,
        kind=kind,
        judge=JudgeRecord(id="refusal_phrases", revision="1", smoke=True),
        prompts_digest="p",
        protocol={"decoding": "greedy"},
        flags={f"{name}{i}{tail}": i < flagged for i in range(N)},
        categories={f"{name}{i}{tail}": f"category {i % 2}{tail}" for i in range(N)},
        rate=flagged / N,
        interval=wilson_interval(flagged, N),
    )


def evaluation(arm: str, tail: str = "", **stated: Any) -> EvaluationReport:
    mean = MEANS[arm]
    figures = {
        "arm": "safemerge" if arm == "candidate" else arm,
        "adapter_digest": None if arm == "aligned" else f"digest of {arm}",
        "model_digest": "m",
        "utility": UtilityReport(
            task="sums",
            metric="score",
            higher_is_better=True,
            value=mean,
            scores={f"d{i}": mean + (i % 2 - 0.5) / 10 for i in range(N)},
            task_digest="t",
            protocol={"limit": None},
        ),
        "suites": (
            suite("harmful", SuiteKind.HARMFUL, FLAGGED[arm], tail),
            suite("ordinary", SuiteKind.OVER_REFUSAL, 1, tail),
        ),
        "settings": {"device": "cpu"},
    }
    return EvaluationReport(**(figures | stated))


def rows(
    report: EvaluationReport, prompt: str = "How?", response: str = "Like this."
) -> list[dict[str, Any]]:
    return [
        {
            "suite": found.suite,
            "kind": found.kind.value,
            "id": prompt_id,
            "category": found.categories[prompt_id],
            "prompt": f"{prompt} {prompt_id}",
            "response": response,
            "flag": flag,
        }
        for found in report.suites
        for prompt_id, flag in found.flags.items()
    ]


def merge() -> MergeReport:
    """Ten layers of two kinds, those with a cosine below 0.35 merged; one is undefined."""
    layers = [
        LayerReport(
            module=f"model.layers.{depth}.self_attn.{kind}",
            cosine=None if (depth, kind) == (4, "v_proj") else (cosine := 0.2 + depth / 20),
            merged=cosine < 0.35,
            reason="by its cosine",
        )
        for depth in range(5)
        for kind in ("q_proj", "v_proj")
    ]
    return MergeReport(
        safemerge_version="0",
        method="exact",
        threshold=0.35,
        weights=(0.6, 0.4),
        digests={},
        layers=tuple(layers),
    )


def reports(tail: str = "") -> dict[str, EvaluationReport]:
    return {arm: evaluation(arm, tail) for arm in FLAGGED}


def decision(of: dict[str, EvaluationReport], policy: GatePolicy = POLICY) -> GateDecision:
    return decide(of["candidate"], of["aligned"], of["fine_tuned"], policy, NO_CHAMPION)


def answer(**stated: Any) -> Approval:
    """What a person said who was asked; an approval where nothing else is stated."""
    said = {"approved": True, "by": "alice", "at": "2026-01-02", "reason": "checked by hand"}
    return Approval(**{"decision_digest": "d", "adapter_digest": "a"} | said | stated)


def release(
    of: dict[str, EvaluationReport] | None = None,
    policy: GatePolicy = POLICY,
    transcripts: list[Transcript] | None = None,
    **stated: Any,
) -> ReleaseReport:
    """A whole release report."""
    of = of or reports()
    if transcripts is None:
        transcripts = gather(of, {arm: rows(report) for arm, report in of.items()})
    given = {"merge": merge(), "transcripts": transcripts} | stated
    return release_report(of, decision(of, policy), policy, PROVENANCE, **given)
