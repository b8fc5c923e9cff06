"""Candidates as a table, and what flags make of a config file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemerge.reports.adapters import SweepReport
from tests.unit.cli.calls import NAMES, inputs, invoke


def test_sweep_prints_candidates_that_stay_whole_at_80_columns(merge_files) -> None:
    grid = ("--quantile", 0.25, "--count", 3, "--weights", 0.8, "--weights", "0.5,0.4", "--method", "exact")
    result = invoke("sweep", *inputs(merge_files), *grid, width=80)
    assert result.exit_code == 0, result.output
    for name in ("exact_q0.25_w0.8_0.2", "exact_q0.25_w0.5_0.4", "exact_n3_w0.8_0.2", "exact_n3_w0.5_0.4"):
        assert name in result.stdout
    assert max(map(len, result.stdout.splitlines()[:-2])) <= 80


def test_sweep_writes_what_is_named(merge_files, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    name = "exact_q0.5_w0.8_0.2"
    result = invoke("sweep", *inputs(merge_files), "--output", output, "--write", name, "--json")
    assert result.stdout == (output / "safemerge_sweep.json").read_text()
    assert SweepReport.model_validate_json(result.stdout).candidates[0].output == name
    assert (output / name / "adapter_model.safetensors").is_file()


def test_sweep_reads_a_file_that_flags_override(merge_files, tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(
        "task_adapter: ./task\naligned_model: ./aligned\nunaligned_model: ./unaligned\noutput: from_file\n"
        "grid: {methods: [scale_selected], quantiles: [0.25, 0.5], weights: [0.6]}\n"
    )
    result = invoke("sweep", "--config", config, "--json")
    names = [candidate["name"] for candidate in json.loads(result.stdout)["candidates"]]
    assert names == ["scale_selected_q0.25_w0.6", "scale_selected_q0.5_w0.6"]
    assert (tmp_path / "from_file").is_dir()
    result = invoke("sweep", "--config", config, "--count", 1, "--output", tmp_path / "o", "--json")
    assert [candidate["name"] for candidate in json.loads(result.stdout)["candidates"]] == [
        "scale_selected_n1_w0.6"
    ]


def test_a_flag_of_zero_overrides_a_file_and_a_size_stands_for_the_other(merge_files, tmp_path: Path) -> None:
    config = tmp_path / "sweep.yaml"
    lines = [f"{name}: {path}" for name, path in zip(NAMES, merge_files, strict=True)]
    config.write_text("\n".join([*lines, "grid: {seed: 5, rank: 2}"]))
    result = invoke("sweep", "--config", config, "--seed", 0, "--max-error", 0.3, "--json")
    (candidate,) = SweepReport.model_validate_json(result.stdout).candidates
    chosen = [candidate.options[name] for name in ("seed", "rank", "max_error")]
    assert chosen == [0, None, 0.3]
    assert invoke("sweep", "--config", config, "--rank", 2, "--max-error", 0.3).exit_code == 2


def test_candidates_that_differ_in_the_second_weight_alone_are_both_kept(merge_files) -> None:
    grid = ("--method", "lox", "--weights", "1,1", "--weights", "1,0.5")
    result = invoke("sweep", *inputs(merge_files), *grid, "--json")
    names = [candidate.name for candidate in SweepReport.model_validate_json(result.stdout).candidates]
    assert names == ["lox_w1_1", "lox_w1_0.5"]


def test_sweep_warns_of_settings_that_hardly_can_be_meant(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", base_model_name_or_path="org/other")
    result = invoke("sweep", *inputs(merge_files), "--threshold", 35, "--weights", 7)
    assert "cosines lie in [0, 1]: 35 merges every layer" in result.stderr
    assert "--task-weight 7 lies outside [0, 1]: it magnifies" in result.stderr
    assert "the task adapter names org/other as its base model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task-adapter", "x"], "missing: --aligned-model, --unaligned-model"),
        (["--weights", "a"], "expected a weight such as 0.8, or two such as 0.8,0.2, got 'a'"),
        (["--weights", "1,2,3"], "got '1,2,3'"),
        (["--method", "exat"], "did you mean exact?"),
    ],
)
def test_sweep_refuses_wrong_flags(arguments: list[str], said: str) -> None:
    result = invoke("sweep", *arguments, width=400)
    assert result.exit_code == 2
    assert said in result.stderr
