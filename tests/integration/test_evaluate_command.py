"""``safemerge evaluate`` on tiny models: one arm and several, and what is left where it fails."""

from __future__ import annotations

import json
import sys

import pytest

from safemerge.errors import EvaluationError, MissingDependencyError
from safemerge.evaluation.evaluating import evaluate_arm
from safemerge.records import EvaluationReport
from safemerge.storage.atomic import unfinished
from tests.integration.measured import PROMPTS, evaluation_settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def adapter(tiny_adapter):
    return tiny_adapter(seed=3, scale=0.5)


@pytest.fixture
def settings(tmp_path):
    return evaluation_settings(tmp_path)


@pytest.fixture
def pipeline(settings, tiny_pair, tmp_path):
    training = {"data": [{"path": "train.jsonl"}], "steps": 1}
    config = {
        "name": "tiny",
        "aligned_model": str(tiny_pair.aligned),
        "unaligned_model": str(tiny_pair.unaligned),
        "task_training": training,
        "safety_training": training,
        "evaluation": settings.model_dump(mode="json"),
        "gate": {"max_harmful_rate": 0.2, "max_over_refusal_rate": 0.2},
        "tracking": {"registered_model": "tiny"},
    }
    path = tmp_path / "pipeline.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def _command(*arguments):
    from typer.testing import CliRunner

    from safemerge.cli.main import app

    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


def test_the_command_writes_the_report_and_every_answer(pipeline, adapter, tmp_path):
    from safemerge.storage.adapters import adapter_digest

    result = _command(
        "--config", pipeline, "--adapter", adapter, "--arm", "mine", "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    # Said before anything is measured: eight prompts are too few for this policy.
    for problem in ("max_harmful_rate 20 % can never", "max_over_refusal_rate 20 % cannot"):
        assert f"warning: {pipeline}: {problem} be shown by the 4 prompts" in result.stderr
    report = EvaluationReport.read(tmp_path / "out" / "report.json")
    assert (report.arm, report.adapter_digest) == ("mine", adapter_digest(adapter))
    lines = (tmp_path / "out" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == list(PROMPTS.values()) * 2
    for shown in ("100.0 % of 4", "smoke judge", "higher is better", f"{report.utility.value:.4f}"):
        assert shown in result.stdout


@pytest.mark.parametrize("library", ["transformers", "peft", "lm_eval"])
def test_a_library_that_is_missing_is_named_first(library, settings, tmp_path, monkeypatch):
    # What an import finds where a package is not installed, down to find_spec.
    monkeypatch.setitem(sys.modules, library, None)
    result = _command("--config", tmp_path / "unread.yaml", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (4, "")
    expected = f"error: {library} is not installed: pip install 'safemerge[evaluation]'"
    assert " ".join(result.stderr.split()) == expected
    with pytest.raises(MissingDependencyError, match=f"{library} is not installed"):
        evaluate_arm(tmp_path, None, "x", settings, model_digest="m", adapter_digest=None)


def test_the_command_leaves_nothing_behind_when_it_fails(pipeline, adapter, tmp_path):
    (tmp_path / "there").mkdir()
    for arguments, message in (
        (("--output", tmp_path / "there"), "expected a path that does not exist yet"),
        (("--output", tmp_path / "x", "--arm", "mine"), "--arm mine: expected --adapter beside it"),
        (("--output", tmp_path / "x", "--arm", "aligned", "--adapter", adapter), "expected another name"),
        (("--output", tmp_path / "x", "--adapter", "org/aligned"), "expected another name for org/aligned"),
        (("--output", tmp_path / "x", "--adapter", tmp_path), "expected a PEFT adapter"),
    ):
        result = _command("--config", pipeline, *arguments)
        assert result.exit_code == 4
        assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*x*/report.json"))
    assert not list((tmp_path / "there").iterdir())


def test_an_interrupt_says_what_is_kept_and_the_same_command_goes_on(pipeline, tmp_path, monkeypatch):
    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    given = ("--config", pipeline, "--output", tmp_path / "out")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("safemerge.evaluation.evaluating.measure_utility", stopped)
        result = _command(*given)
    kept = unfinished(tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr.endswith(
        f"interrupted: {kept} keeps what was done; the same command goes on from there\n"
    )
    assert not (tmp_path / "out").exists()
    assert _command(*given).exit_code == 0
    assert not kept.exists()


def test_several_arms_are_each_in_a_folder_of_their_name(pipeline, adapter, tiny_adapter, tmp_path):
    from safemerge.storage.adapters import adapter_digest

    other = tiny_adapter(seed=4, scale=0.5)
    arguments = ("--config", pipeline, "--aligned", "--adapter", f"mine={adapter}", "--adapter")
    result = _command(*arguments, f"v1.2={other}", "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    reports = {
        folder.name: EvaluationReport.read(folder / "report.json") for folder in (tmp_path / "out").iterdir()
    }
    digests = {name: report.adapter_digest for name, report in reports.items()}
    assert digests == {"aligned": None, "mine": adapter_digest(adapter), "v1.2": adapter_digest(other)}
    assert json.loads(result.stdout) == {n: report.model_dump(mode="json") for n, report in reports.items()}
    assert all((tmp_path / "out" / name / "responses.jsonl").is_file() for name in reports)
    assert not unfinished(tmp_path / "out").exists()


def test_what_is_unfinished_is_kept_until_the_evaluation_is_whole(pipeline, adapter, tmp_path, monkeypatch):
    from safemerge.evaluation import evaluating

    def full(*_, **__):
        raise EvaluationError("no luck")

    arguments = ("--config", pipeline, "--adapter", adapter, "--arm", "mine", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "measure_utility", full)
        assert _command(*arguments).exit_code == 4
    assert [path.name for path in unfinished(tmp_path / "out").iterdir()] == ["journal.jsonl"]
    assert not (tmp_path / "out").exists()
    assert _command(*arguments).exit_code == 0
    assert not unfinished(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("--adapter", "a=x/y", "--adapter", "a=x/z"),
            4,
            "a: expected a name of its own for x/z, got that of x/y",
        ),
        (
            ("--adapter", "org/one", "--adapter", "other/one"),
            4,
            "one: expected a name of its own for other/one",
        ),
        (("--adapter", "aligned=x/y"), 4, "expected another name for x/y"),
        (("--adapter", "..=x/y", "--aligned"), 4, "expected names that folders can have, got .."),
        (
            ("--adapter", "models:/bot/3", "--aligned"),
            4,
            "can have, got bot/3; write --adapter NAME=",
        ),
        (("--adapter", "x/y", "--aligned", "--arm", "z"), 2, "--arm with one adapter alone"),
    ],
)
def test_names_that_cannot_be_are_refused(arguments, code, message, pipeline, tmp_path):
    result = _command("--config", pipeline, *arguments, "--output", tmp_path / "out")
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
