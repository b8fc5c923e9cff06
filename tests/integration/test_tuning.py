"""``safemerge tune`` on a tiny model: the folder, the choice, what is resumed, and the ways it says no."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.config.learning import LearningConfig
from safemerge.config.load import load_merge_file, load_pipeline
from safemerge.engine import measuring, race
from safemerge.engine.tuning import tune_adapters
from safemerge.errors import ConfigError, OutputExistsError
from safemerge.records import EvaluationReport
from safemerge.reports.learning import Coefficients
from safemerge.reports.tuning import Fate, TuneReport
from safemerge.storage.adapters import adapter_digest
from safemerge.storage.atomic import unfinished

pytestmark = pytest.mark.integration

DEMO = Path(__file__).parents[2] / "safemerge" / "demo"


def _suites(split: str, limit: int) -> list[dict[str, object]]:
    return [
        {
            "name": "harmful",
            "kind": "harmful",
            "path": str(DEMO / f"data/harmful_{split}.jsonl"),
            "limit": limit,
        },
        {
            "name": "ordinary",
            "kind": "over_refusal",
            "path": str(DEMO / f"data/ordinary_{split}.jsonl"),
            "limit": limit,
        },
    ]


def _utility(task: str) -> dict[str, object]:
    return {
        "task": task,
        "metric": "answer_logprob_per_token",
        "include_path": str(DEMO / "task"),
        "limit": 4,
    }


@pytest.fixture(scope="module", autouse=True)
def _few_documents():
    """Let candidates be dropped by two documents, where more would take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "MIN_DOCUMENTS", 2)
        yield


@pytest.fixture(scope="module")
def inputs(tiny_pair, tiny_adapter, tmp_path_factory):
    """Config file, task adapter and safety adapter."""
    training = {"data": [{"path": str(DEMO / "data/task_train.jsonl")}], "steps": 2}
    config = {
        "name": "tiny",
        "aligned_model": str(tiny_pair.aligned),
        "unaligned_model": str(tiny_pair.unaligned),
        "task_training": training,
        "safety_training": training,
        "evaluation": {
            "utility": _utility("safemerge_demo"),
            "suites": _suites("eval", 3),
            "generation": {"max_new_tokens": 4},
            # Says of the pipeline's own evaluations alone: a choice's are of whole suites.
            "sequential": {"error": 0.05},
        },
        "gate": {"max_harmful_rate": 0.2, "max_over_refusal_rate": 0.2},
        "tracking": {"registered_model": "r"},
        "tuning": {
            "suites": _suites("dev", 6),
            "utility": _utility("safemerge_demo_dev"),
            "grid": {"quantiles": [0.5, 1.0], "weights": [0.8, 0.5]},
            "max_over_refusal_rate": 1.0,
            # Adapters drawn at random gain nothing; within so many nats all are as good as the task adapter.
            "max_utility_loss": 50.0,
            "rungs": [{"prompts": 0.34, "keep": 0.5}],
        },
    }
    path = tmp_path_factory.mktemp("tune") / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, tiny_adapter(seed=3), tiny_adapter(seed=4)


@pytest.fixture(scope="module")
def tuned(inputs, tmp_path_factory) -> tuple[TuneReport, Path]:
    config, task, safety = inputs
    output = tmp_path_factory.mktemp("tuned") / "out"
    return tune_adapters(load_pipeline(config), task, safety, output=output), output


def test_the_least_harm_is_chosen_and_shown_on_the_split_it_never_saw(tuned, inputs) -> None:
    report, output = tuned
    assert TuneReport.read(output / "safemerge_tune.json") == report
    # A model drawn at random refuses nobody: all do the same harm, so fewer layers merged decide at equal
    # refusals only after utility, which is what tells them apart here.
    best = max(report.candidates, key=lambda candidate: candidate.utility)
    assert report.chosen == best.name == report.candidates[0].name
    assert [c.fate for c in report.candidates] == [
        Fate.CHOSEN,
        Fate.KEPT_LIMITS,
        Fate.OUTRANKED,
        Fate.OUTRANKED,
    ]
    # Four candidates asked 3 + 3 prompts, then two of them 3 + 3 more.
    assert (report.cost.prompts, report.cost.prompts_in_full) == (4 * 6 + 2 * 6, 4 * 12)
    # Four of them scored on 2 documents, then two on all 4.
    assert (report.cost.tokens, report.cost.documents) == (36 * 4, 4 * 2 + 2 * 4)
    assert [c.utility_change.n for c in report.candidates] == [4, 4, 2, 2]
    assert best.harmful.n == 6
    assert report.cost.wall_s > 0
    assert [arm.name for arm in report.final] == [
        "aligned",
        "fine_tuned",
        "chosen",
        "safemerge",
        "safelora",
        "resta",
        "scale",
    ]
    assert {arm.harmful.n for arm in report.final} == {3}
    assert not unfinished(output).exists()


def test_the_folder_holds_adapter_page_settings_and_final_reports(tuned, inputs, tmp_path) -> None:
    report, output = tuned
    assert adapter_digest(output / "chosen") == report.candidates[0].adapter_digest
    chosen = next(arm for arm in report.final if arm.name == "chosen")
    assert chosen.adapter_digest == report.candidates[0].adapter_digest
    final = EvaluationReport.read(output / "final" / "chosen.json")
    assert (final.arm, final.utility.value) == ("chosen", chosen.utility)
    page = (output / "safemerge_tune.html").read_text()
    assert all(candidate.name in page for candidate in report.candidates)
    # The settings, pasted into a merge's config, give the very same adapter.
    config, task, safety = inputs
    pipeline = load_pipeline(config)
    names = {"task_adapter": task, "safety_adapter": safety, "output": tmp_path / "again"}
    models = {role: getattr(pipeline, role) for role in ("aligned_model", "unaligned_model")}
    recipe = tmp_path / "merge.yaml"
    lines = "".join(f"{name}: {value}\n" for name, value in (names | models).items())
    recipe.write_text(lines + (output / "merge.yaml").read_text())
    assert load_merge_file(recipe).merge.method == "exact"
    assert CliRunner().invoke(app, ["merge", "--config", str(recipe)]).exit_code == 0
    assert adapter_digest(tmp_path / "again") == report.candidates[0].adapter_digest


def test_a_killed_choice_goes_on_and_ends_the_same(tuned, inputs, tmp_path, monkeypatch) -> None:
    config, task, safety = inputs
    calls, original = [], measuring.evaluate_arms

    def dies(model, adapters, settings, **more):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append((tuple(adapters), tuple(suite.skip for suite in settings.suites)))
        return original(model, adapters, settings, **more)

    monkeypatch.setattr(measuring, "evaluate_arms", dies)
    with pytest.raises(KeyboardInterrupt):
        tune_adapters(load_pipeline(config), task, safety, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Both references' utility, that of the candidates, and the first round of prompts are there.
    assert [len(adapters) for adapters, _ in calls] == [2, 4, 4]
    calls[:] = [((), ())] * 4  # past the mark at which it dies
    report = tune_adapters(load_pipeline(config), task, safety, output=tmp_path / "out")
    assert [len(adapters) for adapters, _ in calls[4:]] == [2, 7]
    assert report.cost.wall_s is None
    unhurried, _ = tuned
    assert report.model_copy(update={"cost": unhurried.cost}) == unhurried


def test_the_command_says_what_each_missed_where_none_keeps_the_limits(inputs, tmp_path) -> None:
    config, task, safety = inputs
    data = yaml.safe_load(config.read_text())
    data["tuning"]["max_utility_loss"] = None
    data["tuning"]["min_gain_kept"] = 1000.0
    data["tuning"]["utility"]["limit"] = 2  # all there are, so that what is missed is missed for good
    strict = tmp_path / "strict.yaml"
    strict.write_text(yaml.safe_dump(data))
    output = tmp_path / "none"
    adapters = ["--task-adapter", str(task), "--safety-adapter", str(safety)]
    command = ["tune", "--config", str(strict), *adapters, "--output", str(output)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 6, result.output
    report = TuneReport.read(output / "safemerge_tune.json")
    assert report.chosen is None
    assert report.summary == "none of 4 candidates keeps the limits (0 of 48 prompts answered)"
    assert all(candidate.fate is Fate.MISSED for candidate in report.candidates)
    assert not (output / "chosen").exists()
    assert not (output / "merge.yaml").exists()
    for candidate in report.candidates:
        why = f"{candidate.name}: cannot tell: gain kept on safemerge_demo_dev/answer_logprob_per_token"
        assert why in result.stdout
    assert json.loads((output / "safemerge_tune.json").read_text())["final"] == []


def test_an_output_that_exists_is_refused_before_anything_else(inputs, tmp_path) -> None:
    config, task, safety = inputs
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="expected a path that does not exist yet"):
        tune_adapters(load_pipeline(config), task, safety, output=tmp_path / "out")


def test_learned_coefficients_are_candidates_whose_file_goes_with_the_choice(inputs, tmp_path) -> None:
    config, task, safety = inputs
    pipeline = load_pipeline(config)
    learning = LearningConfig(
        harm_weights=(1.0, 3.0), steps=2, task_batch=2, safety_batch=2, task_examples=4, safety_examples=4
    )
    grid = pipeline.tuning.grid.model_copy(update={"methods": ("learned",)})
    # Whoever is chosen is a learned one, as what it loses of the task does not matter.
    changes = {"grid": grid, "arms": (), "rungs": (), "min_gain_kept": None, "max_utility_loss": 100.0}
    tuning = pipeline.tuning.model_copy(update=changes)
    learned = pipeline.model_copy(update={"tuning": tuning})
    report = tune_adapters(learned, task, safety, output=tmp_path / "out", learning=learning)
    found = {candidate.name: candidate for candidate in report.candidates}
    assert set(found) == {"learned_1", "learned_3"}
    assert len({candidate.adapter_digest for candidate in report.candidates}) == 2
    pasted = yaml.safe_load((tmp_path / "out" / "merge.yaml").read_text())
    assert pasted == {"merge": {"method": "learned", "coefficients": "coefficients.json"}}
    coefficients = Coefficients.read(tmp_path / "out" / "coefficients.json")
    assert f"learned_{coefficients.harm_weight:g}" == report.chosen
    # The config asks for the same: the same choice.
    tuning = tuning.model_copy(update={"learning": learning})
    said = pipeline.model_copy(update={"tuning": tuning})
    again = tune_adapters(said, task, safety, output=tmp_path / "again")
    assert again.winner == report.winner


def test_nothing_is_learned_without_a_safety_adapter(inputs, tmp_path) -> None:
    config, task, _ = inputs
    pipeline = load_pipeline(config)
    grid = pipeline.tuning.grid.model_copy(update={"methods": ("scale",)})
    alone = pipeline.model_copy(update={"tuning": pipeline.tuning.model_copy(update={"grid": grid})})
    with pytest.raises(ConfigError, match="expected a safety adapter to fit coefficients for, got none"):
        tune_adapters(alone, task, None, output=tmp_path / "none", learning=LearningConfig())
