"""Two adapters beside each other, and the exit code that tells whether they differ."""

from __future__ import annotations

import pytest

from safemerge.reports.adapters import DifferenceReport
from tests.unit.cli.calls import invoke


def test_diff_lists_layers_that_differ(merge_files) -> None:
    result = invoke("diff", merge_files.task, merge_files.safety)
    assert result.exit_code == 0
    assert "different in 4 of 4 layers: relative difference" in result.stdout
    assert "q_proj" in result.stdout


def test_diff_says_that_adapters_are_identical_or_as_good_as(merge_files, edit_json) -> None:
    same = invoke("diff", merge_files.task, merge_files.task)
    assert "identical: the same settings, and tensors of the same bytes" in same.stdout
    assert "q_proj" not in same.stdout
    assert "q_proj" in invoke("diff", merge_files.task, merge_files.task, "--all").stdout
    near = invoke("diff", merge_files.task, merge_files.safety, "--tolerance", 10)
    assert "the same within 10: relative difference" in near.stdout


def test_diff_tells_by_its_exit_code_only_when_asked(merge_files) -> None:
    assert invoke("diff", merge_files.task, merge_files.safety, "--check").exit_code == 5
    assert invoke("diff", merge_files.task, merge_files.task, "--check").exit_code == 0
    result = invoke("diff", merge_files.task, merge_files.safety, "--check", "--json")
    assert result.exit_code == 5
    assert not DifferenceReport.model_validate_json(result.stdout).same


def test_diff_shortens_long_lists(merge_files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemerge.cli.diff.MOST_ROWS", 3)
    result = invoke("diff", merge_files.task, merge_files.safety)
    assert "… and 1 more layers that differ (--all lists every layer)" in result.stdout
    assert "more layers" not in invoke("diff", merge_files.task, merge_files.safety, "--all").stdout
