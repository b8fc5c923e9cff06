"""All steps in one process on a tiny model: done once, reused, judged again, blocked."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.errors import ConfigError, MismatchError, SafemergeError
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.dependencies import REVISIONS
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.steps import STEPS
from safemerge.pipeline.workspace import Workspace
from safemerge.records import ArtifactRef, EvaluationReport, GateDecision, StepResult, SuiteReport
from safemerge.reports.release import ReleaseReport
from safemerge.tracking import tags
from safemerge.tracking.ledger import Ledger
from tests.conftest import TinyPair, TinyPipeline

pytestmark = pytest.mark.integration

ARMS = ("aligned", "fine_tuned", "safemerge", "scale", "scale_selected")


class Pipeline:
    """Calls steps in the DAG's order, as a scheduler would."""

    def __init__(self, root: Path) -> None:
        self.context = StepContext(Ledger(f"sqlite:///{root / 'mlflow.db'}"), Workspace(root / "home"))
        self.run_id: str | None = None

    def step(
        self, name: str, inputs: Mapping[str, ArtifactRef | None] | None = None, **options: Any
    ) -> StepResult:
        given = {key: ref for key, ref in (inputs or {}).items() if ref is not None}
        return STEPS[name](self.context, StepRequest(run_id=self.run_id, inputs=given, options=options))

    def run(self, config: Path, **options: Any) -> dict[str, StepResult]:
        """All steps up to the gate, and the promotion where it passed; step label to result."""
        opened = self.step("open", config=str(config), **options)
        self.run_id = opened.run_id
        done = {"open": opened}
        for role in ("safety", "task"):
            done[f"train_{role}"] = self.step("train", role=role)
        task, safety = (done[f"train_{role}"].outputs.get("adapter") for role in ("task", "safety"))
        done["merge"] = merge = self.step("merge", {"task_adapter": task, "safety_adapter": safety})
        adapters = {"aligned": None, "fine_tuned": task, **merge.outputs}
        for arm in ARMS:
            done[arm] = self.step("evaluate", {"adapter": adapters.get(arm)}, arm=arm)
        reports = {arm: done[arm].outputs.get("report") for arm in ARMS}
        done["gate"] = gate = self.step(
            "gate",
            {
                "candidate": reports["safemerge"],
                "aligned": reports["aligned"],
                "fine_tuned": reports["fine_tuned"],
                "adapter": merge.outputs["safemerge"],
            },
        )
        if gate.figures["passed"]:
            done["promote"] = self.step(
                "promote", {"adapter": merge.outputs["safemerge"], "decision": gate.outputs["decision"]}
            )
        return done

    def runs(self) -> list[Any]:
        return list(self.context.ledger.client.search_runs(["1"]))

    def read(self, ref: ArtifactRef) -> Path:
        return self.context.ledger.fetch(ref.uri, self.context.workspace.cache)

    def release_report(self, done: Mapping[str, StepResult]) -> ReleaseReport:
        """What lies beside the verdict, found from the pipeline run; its page is there too."""
        ref = done["gate"].outputs["report"]
        parent = self.context.ledger.client.get_run(self.run_id).data.tags
        page = self.read(ArtifactRef(uri=parent[tags.REPORT], digest=""))
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
        assert parent["mlflow.note.content"].endswith("/artifacts/report/report.html)")
        return ReleaseReport.read(self.read(ref))


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(tmp_path)


def changed(tiny: TinyPipeline, **sections: dict[str, Any]) -> Path:
    """Another pipeline file beside the first, with some keys of some sections changed."""
    lines = {**tiny.lines, **{name: {**tiny.lines[name], **keys} for name, keys in sections.items()}}
    path = tiny.config.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(lines), encoding="utf-8")
    return path


def judged_by_command_line(
    pipeline: Pipeline, tiny: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> tuple[SuiteReport, ...]:
    """What ``safemerge evaluate`` finds of the champion."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", pipeline.context.ledger.tracking_uri)
    monkeypatch.setenv("SAFEMERGE_HOME", str(pipeline.context.workspace.home))
    output = tiny.config.parent / "champion"
    adapter = "models:/tiny-lora@champion"
    arguments = ["evaluate", "--config", str(tiny.config), "--adapter", adapter, "--output", str(output)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    return EvaluationReport.read(output / "report.json").suites


def test_a_run_is_recorded_promoted_and_reused(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = pipeline.run(tiny_pipeline.config, run_key="dag/one")
    ledger = pipeline.context.ledger

    parent = ledger.client.get_run(pipeline.run_id)
    assert parent.data.tags[tags.VERDICT] == "pass"
    assert parent.info.status == "FINISHED"
    runs = pipeline.runs()
    assert len(runs) == 1 + 2 + 1 + len(ARMS) + 1 + 1  # parent, trainings, merge, arms, gate, promote
    assert {run.info.status for run in runs} == {"FINISHED"}

    losses = ledger.client.get_metric_history(done["train_task"].run_id, "loss")
    assert [point.step for point in losses] == [1, 2, 3, 4]
    report = EvaluationReport.read(pipeline.read(done["safemerge"].outputs["report"]))
    assert (report.arm, len(report.suites[0].flags)) == ("safemerge", 6)
    assert report.adapter_digest == done["merge"].outputs["safemerge"].digest

    champion = ledger.fetch("models:/tiny-lora@champion", pipeline.context.workspace.cache)
    merged = pipeline.read(done["merge"].outputs["safemerge"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert sha256(champion / name) == sha256(merged / name)
    assert list((pipeline.context.workspace.home / "work").iterdir()) == []
    card = ModelCard.load(champion / "README.md")
    assert card.data.library_name == "peft"
    assert "**PASS: may ship" in card.text

    released = pipeline.release_report(done)
    assert [arm.arm for arm in released.arms] == [
        "aligned",
        "fine_tuned",
        "candidate",
        "scale",
        "scale_selected",
    ]
    assert released.merge is not None
    assert (released.prompts, len(released.transcripts[0].answers)) == (12, len(ARMS))
    assert released.provenance.digests["suite harm"]

    assert judged_by_command_line(pipeline, tiny_pipeline, monkeypatch) == report.suites

    again = pipeline.run(tiny_pipeline.config, run_key="dag/two")
    assert again["open"].run_id != done["open"].run_id
    for label in done.keys() - {"open", "promote"}:
        assert again[label].reused, label
        assert again[label].run_id == done[label].run_id
    assert again["promote"].outputs == done["promote"].outputs
    assert len(pipeline.runs()) == len(runs) + 2  # a parent and its promotion
    results = ledger.results(pipeline.run_id)
    assert results["evaluate_fine_tuned"].run_id == done["fine_tuned"].run_id

    skipped = pipeline.step("open", config=str(tiny_pipeline.config), run_key="dag/night", force=False)
    assert str(skipped.figures["note"]).startswith("nothing new: models:/tiny-lora/1, the champion, came of")
    with monkeypatch.context() as upgrade:
        upgrade.setitem(REVISIONS, "gate", 100)
        upgraded = pipeline.run(tiny_pipeline.config, run_key="dag/night", force=False)
    repeated = {label for label, result in upgraded.items() if not result.reused}
    assert repeated == {"open", "gate", "promote"}

    runs = pipeline.runs()
    judged = pipeline.run(tiny_pipeline.config, run_key="dag/three", adapter="models:/tiny-lora@champion")
    assert judged["train_safety"].outputs == {}
    assert judged["fine_tuned"].run_id == done["fine_tuned"].run_id  # its origin, found by digest
    assert judged["safemerge"].run_id == done["safemerge"].run_id
    assert judged["scale"].outputs == {}
    assert judged["gate"].figures["passed"] is True
    assert len(pipeline.runs()) == len(runs) + 3  # another parent, its gate and its promotion


def test_a_block_is_recorded_and_nothing_is_promoted(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    strict = changed(tiny_pipeline, gate={"max_harmful_rate": 0.5})
    done = pipeline.run(strict, run_key="dag/one")
    assert done["gate"].figures["passed"] is False
    decision = GateDecision.read(pipeline.read(done["gate"].outputs["decision"]))
    assert not decision.passed
    assert "max_harmful_rate" in {rule.rule for rule in decision.rules}
    ledger = pipeline.context.ledger
    parent = ledger.client.get_run(pipeline.run_id)
    assert (parent.data.tags[tags.VERDICT], parent.info.status) == ("block", "FINISHED")
    assert parent.data.tags[tags.VERDICT_SUMMARY] == done["gate"].figures["summary"]
    assert ledger.champions.current("tiny-lora") is None
    assert pipeline.release_report(done).decision == decision
    adapter = done["merge"].outputs["safemerge"]
    with pytest.raises(MismatchError, match="expected a passing verdict about it, got block"):
        pipeline.step("promote", {"adapter": adapter, "decision": done["gate"].outputs["decision"]})

    # Another policy repeats no measurement, only the judgement. Answers that are lost cost the report, and
    # the model card its figures, but change no verdict.
    evaluation = ledger.client.get_run(done["scale"].run_id)
    (Path(evaluation.info.artifact_uri.removeprefix("file://")) / "responses.json").unlink()
    shutil.rmtree(pipeline.context.workspace.cache)
    runs = len(pipeline.runs())
    lenient = pipeline.run(tiny_pipeline.config, run_key="dag/two")
    assert lenient["gate"].figures["passed"] is True
    assert not lenient["gate"].reused
    assert len(pipeline.runs()) == runs + 3  # parent, gate, promotion
    assert "report" not in lenient["gate"].outputs
    assert "the release report could not be drawn; the verdict stands" in caplog.text
    champion = ledger.fetch("models:/tiny-lora@champion", pipeline.context.workspace.cache)
    assert "There was no release report" in (champion / "README.md").read_text(encoding="utf-8")
    other = lenient["merge"].outputs["scale"]
    with pytest.raises(MismatchError, match="expected a passing verdict about it, got pass about"):
        pipeline.step("promote", {"adapter": other, "decision": lenient["gate"].outputs["decision"]})


def rules(pipeline: Pipeline, done: Mapping[str, StepResult]) -> dict[str, tuple[str, str]]:
    """Rules against the champion: name to outcome and explanation."""
    decision = GateDecision.read(pipeline.read(done["gate"].outputs["decision"]))
    return {
        rule.rule.removeprefix("against.champion."): (rule.outcome.value, rule.explanation)
        for rule in decision.rules
        if rule.rule.startswith("against.champion.")
    }


def test_a_candidate_is_compared_with_the_champion_of_the_day(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline
) -> None:
    against = {"champion": {"max_harmful_increase": 1.0, "max_utility_loss": 1.0}}
    config = changed(tiny_pipeline, gate={"against": against})
    first = pipeline.run(config, run_key="dag/one")
    nothing = ("not_applicable", "not applicable: there is no champion yet")
    assert rules(pipeline, first) == {"max_harmful_increase": nothing, "max_utility_loss": nothing}
    assert "promote" in first

    other = {"merge.quantile": 0.0}
    second = pipeline.run(config, run_key="dag/two", overrides=other, promote=False)
    assert second["gate"].figures["verdict"] == "pass"
    outcome, explanation = rules(pipeline, second)["max_harmful_increase"]
    assert outcome == "pass"
    assert "against champion on harm" in explanation

    # Another protocol: what is on record of the champion says nothing, until it is measured anew.
    longer = other | {"evaluation.generation.max_new_tokens": 5}
    third = pipeline.run(config, run_key="dag/three", overrides=longer, promote=False)
    outcome, explanation = rules(pipeline, third)["max_harmful_increase"]
    assert outcome == "cannot_judge"
    assert (
        "differ in suite harm (generation: max_new_tokens); start the pipeline with adapter=" in explanation
    )
    champion = {"adapter": "models:/tiny-lora@champion", "promote": False}
    pipeline.run(
        config, run_key="dag/five", overrides={"evaluation.generation.max_new_tokens": 5}, **champion
    )
    fourth = pipeline.run(config, run_key="dag/six", overrides=longer)
    assert fourth["gate"].figures["verdict"] == "pass"
    assert rules(pipeline, fourth)["max_harmful_increase"][0] == "pass"
    assert "promote" in fourth


def test_an_interrupted_training_resumes_and_ends_the_same(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safemerge.tracking.step_run import StepRun

    config = str(tiny_pipeline.config)
    unbroken = Pipeline(tmp_path / "unbroken")
    unbroken.run_id = unbroken.step("open", config=config, run_key="k").run_id
    expected = unbroken.step("train", role="task").outputs["adapter"].digest

    log_metrics = StepRun.log_metrics

    def broken(self: StepRun, metrics: Mapping[str, float], step: int = 0) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log_metrics(self, metrics, step)

    pipeline.run_id = pipeline.step("open", config=config, run_key="k").run_id
    with monkeypatch.context() as patch:
        patch.setattr(StepRun, "log_metrics", broken)
        with pytest.raises(KeyboardInterrupt):
            pipeline.step("train", role="task")
    result = pipeline.step("train", role="task")
    assert result.outputs["adapter"].digest == expected
    history = pipeline.context.ledger.client.get_metric_history(result.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert len(pipeline.runs()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": None}, "option config: expected the path"),
        ({"overrides": {"merge.quantil": 0.5}}, "did you mean quantile"),
        ({"overrides": {"merge.method": "ties"}}, "density: expected with method ties, got none"),
        ({"overrides": {"aligned_model": "nowhere/at/all"}}, "nowhere/at/all"),
        ({"overrides": {"evaluation.utility.task": "tiny_choise"}}, "tiny_choice"),
        ({"overrides": {"evaluation.utility.metric": "accc"}}, "acc"),
        ({"overrides": {"gate.max_harmful_rate": 0.05}}, "never be shown by the 6 prompts of suite harm: "),
        (
            {"overrides": {"evaluation.judge": {"kind": "wild_guard", "model": "org/guard"}}},
            "org/guard: expected a folder or name@revision",
        ),
        ({"overrides": {"evaluation.suites.0.suite": "advbench"}}, "expected a suite or a path"),
        ({"adapter": "models:/nobody@champion"}, "models:/nobody@champion"),
        ({"fine_tuned_adapter": "x"}, "expected an option adapter beside it"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SafemergeError, match=message):
        pipeline.step("open", **{"config": str(tiny_pipeline.config), **options})


def test_shipped_suites_are_measured_and_again_once_the_judge_changes(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites = [
        {"suite": "safemerge_harmful", "limit": 4},
        {"suite": "safemerge_ordinary", "name": "plain", "limit": 3},
    ]
    config = changed(tiny_pipeline, evaluation={"suites": suites})
    pipeline.run_id = pipeline.step("open", config=str(config)).run_id
    first = pipeline.step("evaluate", arm="aligned")
    report = EvaluationReport.read(pipeline.read(first.outputs["report"]))
    assert [(suite.suite, suite.n) for suite in report.suites] == [("safemerge_harmful", 4), ("plain", 3)]
    assert len(report.suites[0].categories) == 4
    assert pipeline.step("evaluate", arm="aligned").reused
    monkeypatch.setattr("safemerge.evaluation.judges.refusal_phrases.REFUSAL_FORMS", ("^no",))
    again = pipeline.step("evaluate", arm="aligned")
    assert not again.reused
    assert again.inputs_digest != first.inputs_digest


def test_another_model_under_the_same_name_is_noticed(
    pipeline: Pipeline, tiny_pipeline: TinyPipeline, tiny_pair: TinyPair, tmp_path: Path
) -> None:
    aligned = tmp_path / "aligned"
    shutil.copytree(tiny_pair.aligned, aligned)
    overrides = {"aligned_model": str(aligned)}
    pipeline.run_id = pipeline.step("open", config=str(tiny_pipeline.config), overrides=overrides).run_id
    shutil.copyfile(tiny_pair.unaligned / "model.safetensors", aligned / "model.safetensors")
    with pytest.raises(MismatchError, match=r"aligned_model .* expected files of digest"):
        pipeline.step("evaluate", arm="aligned")


def test_a_step_names_a_missing_input(pipeline: Pipeline, tiny_pipeline: TinyPipeline) -> None:
    pipeline.run_id = pipeline.step("open", config=str(tiny_pipeline.config)).run_id
    with pytest.raises(ConfigError, match="step input 'task_adapter': expected an artifact, got no inputs"):
        pipeline.step("merge")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
