"""Cosines as grid, histogram, pictures and JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.reports.adapters import CosineReport
from tests.unit.cli.calls import invoke, models


def test_score_shows_grid_histogram_and_choices(merge_files) -> None:
    result = invoke("score", "--task-adapter", merge_files.task, *models(merge_files))
    assert result.exit_code == 0
    for said in (
        "cosines of 4 layers",
        "layer",
        "q_proj",
        "█",
        "--threshold 0.35",
        "--quantile 0.5",
        "2 of 4",
    ):
        assert said in result.stdout


def test_score_compares_several(merge_files) -> None:
    both = ("--task-adapter", merge_files.task, "--task-adapter", merge_files.safety)
    result = invoke("score", *both, *models(merge_files))
    assert "<0.35" in result.stdout
    assert result.stdout.count("cosines of 4 layers") == 2
    many = invoke("score", *both, *both, *both, *models(merge_files))
    assert "cosines of 4 layers" not in many.stdout


def test_score_json_is_the_report_and_warnings_go_to_stderr(merge_files) -> None:
    task = ("--task-adapter", merge_files.task)
    result = invoke("score", *task, "--aligned-model", merge_files.aligned, "--unaligned-model",
                    merge_files.aligned, "--json")  # fmt: skip
    assert CosineReport.model_validate_json(result.stdout).warnings
    assert "no layer has a cosine" in result.stderr
    table = invoke("score", *task, *task, "--aligned-model", merge_files.aligned, "--unaligned-model",
                   merge_files.aligned)  # fmt: skip
    assert "none defined" in table.stdout


@pytest.mark.parametrize(
    ("name", "start"), [("c.html", b"<!doctype"), ("c.json", b"{"), ("c.png", b"\x89PNG")]
)
def test_score_writes_pictures_and_figures(merge_files, tmp_path: Path, name: str, start: bytes) -> None:
    if name.endswith("png"):
        pytest.importorskip("matplotlib")
    arguments = (
        "score",
        "--task-adapter",
        merge_files.task,
        *models(merge_files),
        "--output",
        tmp_path / name,
    )
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert (tmp_path / name).read_bytes().startswith(start)
    assert invoke(*arguments).exit_code == 4  # it exists now


def test_score_knows_by_the_name_what_to_write(merge_files, tmp_path: Path) -> None:
    result = invoke("score", "--task-adapter", "x", *models(merge_files), "--output", tmp_path / "c.gif")
    assert result.exit_code == 2
    assert "ends in .html, .png, .json" in result.stderr
