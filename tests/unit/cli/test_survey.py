"""The commands that look: inspect, score, diff, sweep, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

from safemerge.cli.flags import complete_method
from safemerge.cli.main import app
from safemerge.cli.schema import Kind
from safemerge.config.schemas import MODELS, json_schema
from safemerge.core import methods
from safemerge.reports import CosineReport, DifferenceReport, InspectionReport, SweepReport


def invoke(*arguments: object, width: int = 120) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": str(width)})


def models(files) -> list[object]:
    return ["--aligned-model", files.aligned, "--unaligned-model", files.unaligned]


NAMES = ("task_adapter", "safety_adapter", "aligned_model", "unaligned_model")


def inputs(files) -> list[object]:
    return ["--task-adapter", files.task, "--safety-adapter", files.safety, *models(files)]


# --- inspect -----------------------------------------------------------------


def test_inspect_describes_and_says_that_all_fits(merge_files) -> None:
    result = invoke("inspect", merge_files.task, merge_files.safety, *models(merge_files))
    assert result.exit_code == 0
    for said in ("q_proj, v_proj × 2 layers", "168 in float32", "not named", "1.66667"):
        assert said in result.stdout
    assert "fits: adapters that can be merged, for the aligned and the unaligned model" in result.stdout
    alone = invoke("inspect", merge_files.task)
    assert "fits: an adapter that can be merged\n" in alone.stdout


def test_inspect_lists_problems_and_notes_and_exits_with_4(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", use_dora=True)
    edit_json(
        merge_files.safety / "adapter_config.json", base_model_name_or_path="org/other", use_rslora=True
    )
    arguments = ("inspect", merge_files.task, merge_files.safety, *models(merge_files))
    result = invoke(*arguments)
    assert result.exit_code == 4
    assert "problem: " in result.stdout
    assert "use_dora=true" in result.stdout
    assert "note: " in result.stdout
    assert "rsLoRA" in result.stdout
    assert "fits" not in result.stdout
    as_json = invoke(*arguments, "--json")
    assert as_json.exit_code == 4
    assert InspectionReport.model_validate_json(as_json.stdout).problems


def test_inspect_counts_modules_where_figures_differ(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", alpha_pattern={"v_proj": 12})
    assert "5 in 2 modules, 12 in 2 modules" in invoke("inspect", merge_files.task).stdout


# --- score -------------------------------------------------------------------


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


# --- diff --------------------------------------------------------------------


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


# --- sweep -------------------------------------------------------------------


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


# --- schema, flags -----------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_schema_prints_the_json_schema_of_every_kind_of_file(kind: str) -> None:
    assert json.loads(invoke("schema", kind).stdout) == json.loads(json.dumps(json_schema(kind)))


def test_the_kinds_offered_are_all_that_there_are() -> None:
    assert set(get_args(Kind)) == MODELS.keys()


def test_shells_complete_names_of_methods_with_what_they_do() -> None:
    assert [name for name, _ in complete_method("")] == list(methods.names())
    ((name, text),) = complete_method("exac")
    assert name == "exact"
    assert text == methods.summaries()["exact"]


def test_an_unknown_method_is_told_all_names_where_none_is_near() -> None:
    result = invoke("merge", "--method", "zzz", width=400)
    assert result.exit_code == 2
    assert f"expected one of {', '.join(methods.names())}" in result.stderr
