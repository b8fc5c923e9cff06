"""``safemerge export``: which flags go together, and what is said of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner, Result

from safemerge.cli.export import StoredDtype
from safemerge.cli.main import app
from safemerge.engine.exporting import Dtype
from tests.unit.conftest import MergeFiles


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def _one(files: MergeFiles) -> list[object]:
    return ["--model", files.aligned, "--adapter", files.task]


def _two(files: MergeFiles) -> list[object]:
    return [
        *("--task-adapter", files.task),
        *("--safety-adapter", files.safety),
        *("--aligned-model", files.aligned),
        *("--unaligned-model", files.unaligned),
    ]


def test_the_dtypes_offered_are_those_of_the_function() -> None:
    assert tuple(dtype.value for dtype in StoredDtype) == get_args(Dtype)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "o"], "missing: --model, --adapter"),
        (["--output", "o", "--adapter", "a"], "missing: --model"),
        (["--output", "o", "--task-adapter", "a", "--aligned-model", "m"], "missing: --unaligned-model"),
        (
            ["--output", "o", "--adapter", "a", "--quantile", 0.5],
            "--adapter and --quantile do not go together",
        ),
        (
            ["--output", "o", "--adapter", "a", "--coefficients", "c.json"],
            "--adapter and --coefficients do not go together",
        ),
        (
            [
                *("--output", "o", "--task-adapter", "a", "--aligned-model", "m", "--unaligned-model", "u"),
                *("--coefficients", "c.json", "--quantile", 0.5, "--task-weight", 0.7),
            ],
            "--coefficients: expected alone, as they choose and weigh every layer, got beside --quantile and "
            "--task-weight",
        ),
        (["--output", "o", "--model", "m", "--adapter", "a", "--private"], "--private: expected with --push"),
        (["--model", "m", "--adapter", "a"], "Missing option '--output'"),
        (["--output", "o", "--method", "magic"], "expected one of "),
        (["--output", "o", "--model", "m", "--adapter", "a", "--dtype", "int8"], "'--dtype'"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(arguments: list[object], said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_an_adapter_is_exported_and_summed_up(merge_files: MergeFiles, tmp_path: Path) -> None:
    result = _invoke(*_one(merge_files), "--output", tmp_path / "new", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert "tensors changed   4" in result.stdout
    assert "bfloat16" in result.stdout
    assert str(tmp_path / "new") in result.stdout
    assert (tmp_path / "new" / "model.safetensors").exists()


def test_a_merge_is_exported_with_its_options_and_as_json(merge_files: MergeFiles, tmp_path: Path) -> None:
    options = ["--modules", "*.q_proj", "--modules", "*.v_proj", "--task-weight", 0.7, "--json"]
    result = _invoke(*_two(merge_files), *options, "--output", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "new" / "safemerge_export.json").read_text())
    merge = json.loads((tmp_path / "new" / "safemerge_report.json").read_text())
    assert merge["weights"] == pytest.approx([0.7, 0.3])
    assert all(layer["merged"] for layer in merge["layers"])


def test_a_merge_without_safety_adapter_runs_where_the_method_allows(
    merge_files: MergeFiles, tmp_path: Path
) -> None:
    flags = [flag for flag in _two(merge_files) if flag not in ("--safety-adapter", merge_files.safety)]
    result = _invoke(*flags, "--method", "scale", "--task-weight", 0.5, "--output", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert "scale" in result.stdout


def test_a_tied_output_embedding_is_told_of(merge_files: MergeFiles, tmp_path: Path, edit_json: Any) -> None:
    from safetensors.torch import save_file
    from torch import ones

    factors = {"lora_A": ones(3, 8), "lora_B": ones(16, 3)}
    tensors = {f"base_model.model.lm_head.{name}.weight": factor for name, factor in factors.items()}
    save_file(tensors, merge_files.task / "adapter_model.safetensors")
    edit_json(merge_files.task / "adapter_config.json", target_modules=["lm_head"])
    edit_json(merge_files.aligned / "config.json", tie_word_embeddings=True)
    result = _invoke(*_one(merge_files), "--output", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert "has weights of its own now: tie_word_embeddings is false in config.json" in result.stdout


def test_a_wrong_input_is_one_line_and_leaves_nothing(merge_files: MergeFiles, tmp_path: Path) -> None:
    result = _invoke("--model", tmp_path / "no", "--adapter", merge_files.task, "--output", tmp_path / "new")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_it_is_uploaded_where_asked_for(
    merge_files: MergeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []

    class StandInHub:
        def whoami(self) -> dict[str, Any]:
            return {"name": "me"}

        def create_repo(self, repo_id: str, **_: Any) -> None:
            sent.append(repo_id)

        def upload_folder(self, *, folder_path: Path, **_: Any) -> None:
            sent.append(str(folder_path))

    monkeypatch.setattr("huggingface_hub.HfApi", StandInHub)
    result = _invoke(*_one(merge_files), "--output", tmp_path / "new", "--push-to-hub", "me/model")
    assert result.exit_code == 0, result.stderr
    assert sent == ["me/model", str(tmp_path / "new")]
    assert "https://huggingface.co/me/model" in result.stdout


def test_warnings_go_to_stderr(merge_files: MergeFiles, tmp_path: Path, edit_json: Any) -> None:
    for folder, base in ((merge_files.task, "/a"), (merge_files.safety, "/b")):
        edit_json(folder / "adapter_config.json", base_model_name_or_path=base)
    result = _invoke(*_two(merge_files), "--output", tmp_path / "new")
    assert result.exit_code == 0, result.stderr
    assert "warning: the task adapter names /a as its base model" in result.stderr
