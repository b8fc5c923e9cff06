"""Whatever makes a step do its work again makes a run that is not skipped as nothing new."""

from __future__ import annotations

import itertools
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from safemerge.evaluation.judges import make_judges
from safemerge.evaluation.libraries import versions
from safemerge.evaluation.suites import Prompt, Suite
from safemerge.pipeline.dependencies import LIBRARIES, REVISIONS, inputs_digest, measuring, plan_digest
from safemerge.records import ArtifactRef, SuiteKind
from safemerge.tracking.ledger import PipelinePlan
from tests.unit.pipelines import PIPELINE, pipeline_config
from tests.unit.plots.test_coefficients import record

EVALUATION: dict[str, Any] = PIPELINE["evaluation"]
TUNING: dict[str, Any] = {
    "suites": EVALUATION["suites"],
    "utility": {"task": "dev", "metric": "m"},
    "learning": {},
    "min_gain_kept": 0.9,
    "max_over_refusal_rate": 0.5,
}
PLAN = PipelinePlan(
    pipeline="tiny",
    inputs_digest="",
    model_digests={"aligned_model": "1" * 64, "unaligned_model": "2" * 64},
    task_digest="3" * 64,
    data_digests={"task_training": "4" * 64, "safety_training": "5" * 64},
)


def suites(text: str = "?") -> list[Suite]:
    prompts = (Prompt("a", text),)
    return [Suite("harm", SuiteKind.HARMFUL, prompts), Suite("plain", SuiteKind.OVER_REFUSAL, prompts)]


def digest(plan: PipelinePlan = PLAN, asked: str = "?", chosen_by: str = "??", **changes: Any) -> str:
    """The plan's digest of a pipeline that chooses its merge, with some sections changed."""
    config = pipeline_config(**{"tuning": TUNING, **changes})
    return plan_digest(config, plan, suites(asked), suites(chosen_by) if config.tuning else ())


def test_the_digest_is_of_the_content() -> None:
    assert digest() == digest(PLAN.model_copy(update={"inputs_digest": "6" * 64}))


@pytest.mark.parametrize("step", REVISIONS)
def test_a_revision_of_any_step_counts(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    before = digest()
    monkeypatch.setitem(REVISIONS, step, 100)
    assert digest() != before


@pytest.mark.parametrize("library", sorted({*versions(), *itertools.chain(*LIBRARIES.values())}))
def test_a_version_of_any_library_counts(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    before, installed = digest(), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == library else installed(name))
    assert digest() != before


@pytest.mark.parametrize(
    "changed",
    [
        {"task_digest": "6" * 64},
        {"model_digests": {**PLAN.model_digests, "unaligned_model": "6" * 64}},
        {"data_digests": {**PLAN.data_digests, "safety_training": "6" * 64}},
        {"data_digests": {**PLAN.data_digests, "tuning task of round 0": "6" * 64}},
        {"promote": False},
        {"adapter": ArtifactRef(uri="a", digest="6" * 64)},
        {"fine_tuned_adapter": ArtifactRef(uri="a", digest="6" * 64)},
        {"pipeline": "other"},
    ],
)
def test_what_a_run_is_opened_with_counts(changed: dict[str, Any]) -> None:
    assert digest(PLAN.model_copy(update=changed)) != digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"task_training": {**PIPELINE["task_training"], "steps": 3}},
        {"merge": {"quantile": 0.4}},
        {"evaluation": {**EVALUATION, "generation": {"max_new_tokens": 3}}},
        {"evaluation": {**EVALUATION, "utility": {"task": "t", "metric": "m", "filter": "strict"}}},
        {"gate": {**PIPELINE["gate"], "min_gain_kept": 0.5}},
        {"tracking": {"experiment": "e", "registered_model": "other"}},
        {"tuning": None},
        {"tuning": {**TUNING, "learning": None}},
        {"tuning": {**TUNING, "learning": {"steps": 3}}},
        {"tuning": {**TUNING, "min_gain_kept": 0.8}},
        {"tuning": {**TUNING, "utility": {"task": "dev", "metric": "n"}}},
        {"tuning": {**TUNING, "grid": {"quantiles": [0.4]}}},
        {"asked": "!"},
        {"chosen_by": "!"},
    ],
)
def test_settings_and_prompts_count(changed: dict[str, Any]) -> None:
    assert digest(**changed) != digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"aligned_model": "elsewhere"},
        {"retention": {"cache_days": 1}},
        {"task_training": {"data": [{"path": "elsewhere.jsonl"}], "steps": 2, "save_every_steps": 7}},
        {"evaluation": {**EVALUATION, "utility": {"task": "t", "metric": "m", "include_path": "elsewhere"}}},
        {"tuning": {**TUNING, "utility": {"task": "dev", "metric": "m", "include_path": "elsewhere"}}},
        {"tuning": {**TUNING, "suites": [suite | {"path": "a.jsonl"} for suite in EVALUATION["suites"]]}},
    ],
)
def test_places_do_not_count_as_what_lies_there_does(changed: dict[str, Any]) -> None:
    assert digest(**changed) == digest()


def test_a_guard_counts_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    guard = {"kind": "llama_guard", "model": str(tmp_path)}
    found = []
    for value in (1.0, 2.0):
        save_file({"w": np.full(2, value, np.float32)}, tmp_path / "model.safetensors")
        found.append(digest(evaluation={**EVALUATION, "judge": guard}))
    assert len({*found, digest()}) == 3


def test_new_refusal_phrases_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr("safemerge.evaluation.judges.refusal_phrases.REFUSAL_FORMS", ("^no",))
    assert digest() != before


@pytest.mark.parametrize("section", ["merge", "tuning"])
def test_coefficients_count_by_what_their_files_hold(tmp_path: Path, section: str) -> None:
    def of(folder: str, harm_weight: float, beta: float) -> str:
        path = tmp_path / folder / "c.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(record(harm_weight, beta=beta).to_json(), encoding="utf-8")
        here = {
            "merge": {"coefficients": str(path)},
            "tuning": {**TUNING, "learning": None, "grid": {"coefficients": [str(path)]}},
        }
        return digest(**{section: here[section]})

    assert of("a", 1, 1.25) == of("b", 1, 1.25)
    assert of("a", 1, 1.25) != of("a", 1, 1.0)
    assert digest() != of("a", 1, 1.25)


def test_adapters_are_measured_apart() -> None:
    config = pipeline_config()
    judges = make_judges(config.evaluation)

    def of(adapter: ArtifactRef | None) -> str:
        known = measuring(config.evaluation, PLAN, config.gate, suites(), judges, PLAN.task_digest, adapter)
        return inputs_digest("evaluate", known)

    one, other = (ArtifactRef(uri="a", digest=letter * 64) for letter in "ab")
    assert len({of(None), of(one), of(other)}) == 3
    assert of(one) == of(one.model_copy(update={"uri": "b"}))
