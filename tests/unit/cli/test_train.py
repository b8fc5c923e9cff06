"""``safemerge train`` on a pipeline file: the adapter it writes, and what it refuses."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.errors import EXIT_ERROR
from safemerge.reports.training import TrainingReport


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.mark.integration
def test_the_adapter_of_the_role_is_trained(tiny_pipeline, tmp_path):
    output = tmp_path / "adapters" / "safety"
    result = run("--config", tiny_pipeline.config, "--adapter", "safety", "--output", output)
    assert result.exit_code == 0, result.output
    assert f"{output}: 4 steps on 8 examples, final loss" in result.output
    report = TrainingReport.read(output / "safemerge_training.json")
    assert report.model == tiny_pipeline.lines["aligned_model"]
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 2
    assert sorted(path.name for path in output.parent.iterdir()) == ["safety"]  # checkpoints are gone


def test_an_output_that_exists_is_refused_before_anything_is_read(tiny_pipeline, tmp_path):
    result = run("--config", tiny_pipeline.config, "--adapter", "task", "--output", tmp_path)
    assert result.exit_code == EXIT_ERROR
    assert "expected a path that does not exist yet" in result.output


def test_a_bad_row_is_named_by_file_and_line(tiny_pipeline, tmp_path):
    lines = dict(tiny_pipeline.lines)
    (tiny_pipeline.config.parent / "bad.jsonl").write_text('{"prompt": "p"}\n')
    lines["task_training"] = {**lines["task_training"], "data": [{"path": "bad.jsonl"}]}
    tiny_pipeline.config.write_text(yaml.safe_dump(lines))
    result = run("--config", tiny_pipeline.config, "--adapter", "task", "--output", tmp_path / "adapter")
    assert result.exit_code == EXIT_ERROR
    assert "bad.jsonl, line 1: expected a column 'response', got 'prompt'" in result.output
    assert not (tmp_path / "adapter").exists()
