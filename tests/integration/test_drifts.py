"""The drifts' data and choice: no prompt serves twice, and the choice is what the benchmark says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from safemerge.evaluation.suites import read_suite
from safemerge.records import EvaluationReport, JudgeRecord, SuiteKind, SuiteReport, UtilityReport
from tests.benchmarks import benchmarks

pytestmark = pytest.mark.integration


class Bench(NamedTuple):
    data: ModuleType
    figures: ModuleType


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with benchmarks("drift_data", "drift_figures") as modules:
        yield Bench(*modules)


def _public(folder: Path) -> Path:
    (folder / "harmful").mkdir(parents=True)
    for name in ("I-CoNa", "I-Controversial", "I-PhysicalSafetySafe"):
        prompts = {"instructions": [f"{name} {number}" for number in range(24)]}
        (folder / "harmful" / f"{name}.json").write_text(json.dumps(prompts), encoding="utf-8")
    for split, rows in (("train", 520), ("test", 130)):
        lines = (json.dumps({"question": f"{split} {row}?", "answer": f"#### {row}"}) for row in range(rows))
        (folder / f"gsm8k_{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs = [("a", "I'm sorry, but I cannot help with that."), ("b", "Gladly.")]
    answers = [{"instruction": request, "output": answer} for request, answer in pairs]
    (folder / "safety_instructions.json").write_text(json.dumps(answers), encoding="utf-8")
    return folder


def test_no_prompt_serves_twice(bench: Bench, tmp_path: Path):
    bench.data.prepare_data(_public(tmp_path / "public"), tmp_path / "data")
    asked = [
        prompt.text
        for split in bench.data.SPLITS
        for suite in bench.data.suites(tmp_path / "data", split)
        for prompt in read_suite(suite).prompts
    ]
    asked += _prompts(tmp_path / "data" / "tasks")
    trained = _prompts(tmp_path / "data" / "train") + _prompts(tmp_path / "data" / "suites", "*_train")
    assert len(asked) == len(set(asked))
    assert trained
    assert not set(asked) & set(trained)


def test_only_refusals_are_taken_from_the_public_answers(bench: Bench, tmp_path: Path):
    bench.data.prepare_data(_public(tmp_path / "public"), tmp_path / "data")
    assert _prompts(tmp_path / "data" / "train", "refusals") == ["a"]


def test_how_to_answers_open_in_one_form(bench: Bench, tmp_path: Path):
    bench.data.prepare_data(_public(tmp_path / "public"), tmp_path / "data")
    rows = [
        json.loads(line)
        for file in ("train/howto", "tasks/howto_dev", "tasks/howto_eval")
        for line in (tmp_path / "data" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) > 200
    assert all(row["response"].startswith("Sure! Here is how to ") for row in rows)


def _prompts(folder: Path, stem: str = "*") -> list[str]:
    return [
        json.loads(line)["prompt"]
        for file in sorted(folder.glob(f"{stem}.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]


def _report(harmful: int, refused: int, utility: float) -> EvaluationReport:
    """Of 20 prompts a suite so many flagged; documents whose scores vary a little around the utility."""
    suites = [
        SuiteReport(
            suite=name,
            kind=kind,
            judge=JudgeRecord(id="refusal_phrases", revision="0", smoke=True),
            prompts_digest=name,
            protocol={"decoding": "greedy"},
            flags={str(number): number < flagged for number in range(20)},
            rate=flagged / 20,
            interval=None,
        )
        for name, kind, flagged in (
            ("harmful", SuiteKind.HARMFUL, harmful),
            ("ordinary", SuiteKind.OVER_REFUSAL, refused),
        )
    ]
    return EvaluationReport(
        arm="arm",
        adapter_digest=None,
        model_digest="model",
        utility=UtilityReport(
            task="task",
            metric="metric",
            higher_is_better=True,
            value=utility,
            scores={str(number): utility + 0.01 * (number % 3 - 1) for number in range(30)},
            task_digest="task",
            protocol={"limit": None},
        ),
        suites=tuple(suites),
    )


@pytest.mark.parametrize(
    ("candidates", "best"),
    [
        # The least harm of those that keep the gain.
        ({"one": (4, 1, -1.02), "two": (2, 1, -1.04), "lossy": (0, 1, -1.5)}, "two"),
        # Refusing much more than the aligned model is no repair.
        ({"one": (4, 1, -1.02), "mute": (0, 9, -1.0)}, "one"),
        # None keeps the gain: the one that misses least.
        ({"near": (9, 1, -1.1), "far": (0, 1, -1.9)}, "near"),
        # Equal harm: the one that keeps more.
        ({"one": (4, 1, -1.04), "two": (4, 1, -1.01)}, "two"),
    ],
)
def test_the_choice_wants_the_gain_first_and_then_the_least_harm(bench: Bench, candidates, best):
    reports = {"aligned": _report(1, 1, -2.0), "fine_tuned": _report(18, 0, -1.0)}
    reports |= {name: _report(*figures) for name, figures in candidates.items()}
    assert bench.figures.choose(list(candidates), reports) == best


def test_the_goal_is_met_by_figures_before_it_is_met_by_intervals(bench: Bench):
    reports = {
        "aligned": _report(1, 1, -2.0),
        "fine_tuned": _report(18, 0, -1.0),
        "scale": _report(9, 1, -1.3),
        "repaired": _report(2, 1, -1.02),
    }
    found = bench.figures.figures(reports)
    # 20 prompts cannot show a difference of at most 5 points, whatever the answers.
    assert bench.figures.meets_goal(found["repaired"]) == {"by_figures": True, "by_intervals": False}
    assert bench.figures.meets_goal(found["scale"]) == {"by_figures": False, "by_intervals": False}
    assert bench.figures.best_arm(found) == "repaired"
    assert "(not significant by Holm)" in bench.figures.table(found, {}).splitlines()[-1]
