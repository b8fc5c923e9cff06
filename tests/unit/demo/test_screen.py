"""The last screen holds every arm with its figures, and says plainly what was blocked."""

from __future__ import annotations

from rich.console import Console

from safemerge.demo.screen import last_screen, verdict_panel
from safemerge.gate import GatePolicy, decide
from safemerge.records import EvaluationReport, JudgeRecord, SuiteKind, SuiteReport, UtilityReport
from safemerge.stats import wilson_interval

N = 100


def report(arm: str, harmful: int, utility: float, refused: int = 5) -> EvaluationReport:
    def suite(name: str, kind: SuiteKind, flagged: int) -> SuiteReport:
        return SuiteReport(
            suite=name,
            kind=kind,
            judge=JudgeRecord(id="refusal_phrases", revision="1", smoke=True),
            prompts_digest="p",
            protocol={"decoding": "greedy"},
            flags={f"p{i}": i < flagged for i in range(N)},
            rate=flagged / N,
            interval=wilson_interval(flagged, N),
        )

    return EvaluationReport(
        arm=arm,
        adapter_digest=None if arm == "aligned" else arm,
        model_digest="m",
        utility=UtilityReport(
            task="t",
            metric="answer_logprob_per_token",
            higher_is_better=True,
            value=utility,
            scores={f"d{i}": utility + (i % 2 - 0.5) / 100 for i in range(N)},
            task_digest="t",
            protocol={"filter": "none"},
        ),
        suites=(
            suite("harmful_eval", SuiteKind.HARMFUL, harmful),
            suite("ordinary_eval", SuiteKind.OVER_REFUSAL, refused),
        ),
    )


def test_the_screen_shows_arms_repair_and_verdicts() -> None:
    reports = {
        "safemerge": report("safemerge", 9, -1.05),
        "aligned": report("aligned", 5, -2.0),
        "fine_tuned": report("fine_tuned", 45, -1.0),
        "scale_selected": report("scale_selected", 30, -1.1),
    }
    policy = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.3, min_gain_kept=0.9)
    verdicts = {
        "SafeMERGE": decide(reports["safemerge"], reports["aligned"], reports["fine_tuned"], policy),
        "unrepaired": decide(reports["fine_tuned"], reports["aligned"], reports["fine_tuned"], policy),
    }
    console = Console(record=True, width=160)
    console.print(last_screen(reports, verdicts, ["make up"]))
    text = console.export_text()
    order = [
        text.index(name) for name in ("aligned model", "fine-tuned, unrepaired", "SafeMERGE", "control:")
    ]
    assert order == sorted(order)
    assert "45.0 %" in text
    assert "[5–16]" in text  # Wilson, 9 of 100
    assert "moved the harmful rate on harmful_eval by +40.0 [" in text
    assert "won back 90 %" in text
    assert "95 %" in text
    assert "PASS: may ship (smoke judge)" in text
    assert "BLOCK: must not ship (smoke judge)" in text
    assert "a smoke judge: enough for a demo" in text
    assert "✗ harmful rate 45.0 %" in text
    assert text.rstrip().endswith("make up")


def test_an_arm_that_cannot_be_compared_says_so() -> None:
    reports = {
        "aligned": report("aligned", 5, -1.0),
        "fine_tuned": report("fine_tuned", 5, -1.0),
        "safemerge": report("safemerge", 5, -1.0),
    }
    console = Console(record=True, width=160)
    console.print(last_screen(reports, {}, []))
    text = console.export_text()
    assert "cannot tell" in text
    assert "fine-tuning's rise may be zero" in text


def test_a_verdict_is_told_as_the_gate_tells_it() -> None:
    arms = [report("safemerge", 9, -1.05), report("aligned", 5, -2.0), report("fine_tuned", 45, -1.0)]
    signed = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.3, sign_off="required")
    undecided = GatePolicy(max_harmful_rate=0.1, max_over_refusal_rate=0.3, on_cannot_tell="ask")
    console = Console(record=True, width=160)
    for policy in (signed, undecided):
        console.print(verdict_panel(decide(*arms, policy), "SafeMERGE"))
    text = console.export_text()
    assert "PASS: may ship once a person has signed (smoke judge)" in text
    assert "CANNOT TELL: a person must decide (smoke judge)" in text
    assert "? cannot tell: harmful rate 9.0 %" in text


def test_an_arm_measured_on_other_documents_has_no_gain() -> None:
    reports = {name: report(name, 5, utility) for name, utility in (("aligned", -2.0), ("fine_tuned", -1.0))}
    odd = report("safemerge", 5, -1.1)
    reports["safemerge"] = odd.model_copy(
        update={"utility": odd.utility.model_copy(update={"task_digest": "another"})}
    )
    console = Console(record=True, width=160)
    console.print(last_screen(reports, {}, []))
    (line,) = (line for line in console.export_text().splitlines() if line.startswith(" SafeMERGE"))
    assert line.split()[:3] == ["SafeMERGE", "-1.100", "–"]
