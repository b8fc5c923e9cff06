"""``safemerge merge``: flags to merges, and what is said of them. Uses the golden merges where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from safemerge.cli.advice import threshold_warning
from safemerge.cli.main import app
from safemerge.config import values
from safemerge.core.options import OnUndefined
from safemerge.records import LayerReport, MergeReport
from tests.unit.cli.calls import invoke

GOLDEN = Path(__file__).parents[3] / ".." / "shared" / "golden"
REFERENCES = sorted(path.parent for path in GOLDEN.glob("*/reference_adapter"))

golden = pytest.mark.skipif(not REFERENCES, reason=f"the golden merges are not at {GOLDEN}")


def _invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def _own(folder: Path) -> list[object]:
    return [
        *("--task-adapter", folder / "task"),
        *("--safety-adapter", folder / "safety"),
        *("--aligned-model", folder / "aligned"),
        *("--unaligned-model", folder / "unaligned"),
    ]


def _published(folder: Path) -> list[object]:
    return [
        *("--base_model_id", folder / "aligned"),
        *("--finetuned_model_id", folder / "task"),
        *("--safety_model_id", folder / "safety"),
        *("--safelora_aligned_model_id", folder / "aligned"),
        *("--safelora_unaligned_model_id", folder / "unaligned"),
    ]


def _expected(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_the_choices_offered_are_those_of_the_config() -> None:
    assert set(get_args(OnUndefined)) == {choice.value for choice in values.OnUndefined}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [*_own(Path("x")), "--threshold", 0.3, "--quantile", 0.5, "--output", "o"],
            "got --threshold and --quantile",
        ),
        ([*_own(Path("x")), "--quantile", 1.5, "--output", "o"], "'--quantile'"),
        ([*_own(Path("x")), "--method", "cat", "--output", "o"], "cat"),
        (["--task-adapter", "x"], "missing: --safety-adapter, --aligned-model"),
        (["--task-adapter", "x", "--safety_model_id", "y"], "--task-adapter and --safety_model_id"),
        (["--threshold", 0.3, *_published(Path("x"))], "--threshold and --base_model_id"),
        (["--safety_model_id", "y"], "--finetuned_model_id, --safelora_unaligned_model_id"),
        ([*_published(Path("x")), "--weighting", "0.8"], "expected two numbers"),
    ],
)
def test_flags_that_do_not_go_together_are_usage_errors(
    arguments: list, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    result = _invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_wrong_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    result = _invoke(*_own(tmp_path / "nowhere"), "--output", tmp_path / "merged")
    assert result.exit_code == 4
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "merged").exists()


@golden
def test_a_merge_writes_its_four_files_and_sums_itself_up(tmp_path: Path) -> None:
    expected = _expected(REFERENCES[0])
    task, safety = expected["weights"]
    result = _invoke(
        *_own(REFERENCES[0]),
        *("--threshold", expected["threshold"], "--task-weight", task, "--output", tmp_path / "merged"),
    )
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "safemerge_layers.html",
        "safemerge_report.json",
    }
    merged = sum(layer["merged"] for layer in expected["layers"].values())
    assert f"{merged} of {len(expected['layers'])}" in result.stdout
    assert f"weights {task:g} (task) and {safety:g} (safety)" in result.stdout
    assert "median" in result.stdout
    assert result.stderr == ""


@golden
def test_json_is_the_report_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    result = _invoke(*_own(REFERENCES[0]), "--quantile", 0.5, "--output", tmp_path / "merged", "--json")
    assert result.stdout == (tmp_path / "merged" / "safemerge_report.json").read_text(encoding="utf-8")
    report = MergeReport.model_validate_json(result.stdout)
    assert sum(layer.merged for layer in report.layers) == len(report.layers) // 2


@golden
def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    _invoke(*_own(REFERENCES[0]), "--quantile", 0.5, "--output", tmp_path / "merged")
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "merged").iterdir()} == {plain}


@golden
def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    result = _invoke(*_own(REFERENCES[0]), "--quantile", 0.5, "--output", tmp_path)
    assert result.exit_code == 4
    assert str(tmp_path) in result.stderr


@golden
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
@pytest.mark.parametrize("by_ratio", [False, True], ids=["weighting", "ratio"])
def test_the_published_flags_give_the_published_adapter(folder: Path, by_ratio: bool, tmp_path: Path) -> None:
    expected = _expected(folder)
    weights = ["--weighting", json.dumps(expected["weights"])]
    if by_ratio:
        weights = ["--weighting", "[0.1, 0.1]", "--default_merge_ratio", expected["weights"][1]]
    result = _invoke(
        *_published(folder), "--cos_threshold", expected["threshold"], *weights, "--output_path", tmp_path
    )
    assert result.exit_code == 0, result.output
    (merged,) = tmp_path.iterdir()
    reference = load_file(folder / "reference_adapter" / "adapter_model.safetensors")
    ours = load_file(merged / "adapter_model.safetensors")
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        assert ours[name].dtype == tensor.dtype
        # One rounding of fp32 more or less: PEFT multiplies by weight and root in another order.
        assert torch.allclose(ours[name], tensor, rtol=1e-6, atol=1e-7), name
    configs = [
        json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        for path in (merged, folder / "reference_adapter")
    ]
    for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
        assert configs[0][key] == configs[1][key], key
    assert set(configs[0]["target_modules"]) == set(configs[1]["target_modules"])
    assert result.stdout.count("than the paper's formula") == 1


@golden
def test_dare_linear_repeats_with_its_seed_and_prunes_kept_layers_too(tmp_path: Path) -> None:
    def merge(parent: str, seed: int) -> dict[str, torch.Tensor]:
        result = _invoke(
            *_published(REFERENCES[0]),
            *("--cos_threshold", 0.3, "--merge_type", "dare_linear", "--density", 0.5, "--seed", seed),
            *("--output_path", tmp_path / parent, "--json"),
        )
        assert result.exit_code == 0, result.output
        assert "than the paper's formula" in result.stderr
        (folder,) = (tmp_path / parent).iterdir()
        kept = [layer["module"] for layer in json.loads(result.stdout)["layers"] if not layer["merged"]]
        assert kept
        tensors = load_file(folder / "adapter_model.safetensors")
        return {name: tensor for name, tensor in tensors.items() if any(module in name for module in kept)}

    first, again, other = merge("a", 1), merge("b", 1), merge("c", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    zeros = torch.cat([(tensor == 0).flatten() for tensor in first.values()]).float().mean()
    # Some thousand fair coins: 0.1 is more than ten standard deviations.
    assert abs(zeros - 0.5) < 0.1


def _report(
    cosines: list[float | None], threshold: float | None, quantile: float | None = None
) -> MergeReport:
    layers = tuple(
        LayerReport(module=f"layers.{i}.q_proj", cosine=cosine, merged=False, reason="")
        for i, cosine in enumerate(cosines)
    )
    return MergeReport(
        safemerge_version="0",
        method="exact",
        threshold=threshold,
        quantile=quantile,
        weights=(0.8, 0.2),
        digests={},
        layers=layers,
    )


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (_report([0.4, 0.5, None], 0.35), "threshold 0.35 merged no layer"),
        (_report([0.1, 0.2, 0.3], 0.35), "merged every layer"),
        (_report([0.1, 0.2, 0.3], 0.35), "between 0.1 and 0.3"),
        (
            _report([0.1, 0.2, 0.3], 0.35),
            "--quantile 0.5 merges the half with the lowest: here, a threshold of 0.2",
        ),
    ],
)
def test_a_threshold_that_tells_no_layers_apart_is_worth_a_warning(report: MergeReport, said: str) -> None:
    assert said in threshold_warning(report)


@pytest.mark.parametrize(
    "report",
    [
        _report([0.1, 0.5], 0.35),
        _report([0.4, 0.5], 0.35, quantile=0.0),
        _report([0.4, 0.5], 0.0),
        _report([0.4, 0.5], 1.01),
        _report([0.4, 0.5], None),
        _report([None], 0.35),
        _report([], 0.35),
    ],
    ids=["apart", "quantile", "nothing meant", "everything meant", "scale", "undefined", "empty"],
)
def test_no_warning_where_it_does_or_was_not_meant_to(report: MergeReport) -> None:
    assert threshold_warning(report) is None


@golden
def test_the_warning_goes_to_stderr(tmp_path: Path) -> None:
    result = _invoke(*_own(REFERENCES[0]), "--threshold", 0.001, "--output", tmp_path / "merged")
    assert result.exit_code == 0
    assert result.stderr.startswith("warning: threshold 0.001 merged no layer")


def test_warnings_of_the_report_go_to_stderr(merge_files, edit_json, tmp_path: Path) -> None:
    for name in ("task", "safety"):
        edit_json(tmp_path / name / "adapter_config.json", base_model_name_or_path=f"/models/{name}")
    result = _invoke(*_own(tmp_path), "--quantile", 0.5, "--output", tmp_path / "merged", "--json")
    assert result.stderr.startswith("warning: the task adapter names /models/task as its base model")
    assert json.loads(result.stdout)["warnings"]


@pytest.mark.parametrize(
    ("family", "arguments", "merged"),
    [("own", [], False), ("published", [], True), ("published", ["--on-undefined", "keep"], False)],
)
def test_a_layer_without_a_cosine_is_kept_unless_the_flags_are_the_scripts(
    merge_files, edit_tensors, tmp_path: Path, family: str, arguments: list[str], merged: bool
) -> None:
    module = "model.layers.0.self_attn.q_proj"
    weight = load_file(merge_files.aligned / "model.safetensors")[f"{module}.weight"]
    edit_tensors(
        merge_files.unaligned / "model.safetensors", lambda t: t.update({f"{module}.weight": weight})
    )
    flags = {
        "own": [*_own(tmp_path), "--threshold", 0.35, "--output", tmp_path / "merged"],
        "published": [*_published(tmp_path), "--output_path", tmp_path / "merged"],
    }
    result = _invoke(*flags[family], *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    (layer,) = (layer for layer in json.loads(result.stdout)["layers"] if layer["module"] == module)
    assert layer["cosine"] is None
    assert layer["merged"] == merged


def test_a_config_file_stands_for_the_flags(merge_files, tmp_path: Path) -> None:
    config = tmp_path / "merge.yaml"
    config.write_text(
        "task_adapter: ./task\nsafety_adapter: ./safety\naligned_model: ./aligned\n"
        "unaligned_model: ./unaligned\noutput: merged\nmerge: {quantile: 0.5, task_weight: 0.7}\n"
    )
    by_file = _invoke("--config", config, "--json")
    assert by_file.exit_code == 0, by_file.output
    by_flags = _invoke(
        *_own(tmp_path), "--quantile", 0.5, "--task-weight", 0.7, "--output", tmp_path / "o", "--json"
    )
    assert by_file.stdout == by_flags.stdout
    assert (tmp_path / "merged").is_dir()
    report = json.loads(by_file.stdout)
    assert report["options"]["quantile"] == 0.5
    assert report["options"]["safety_weight"] == pytest.approx(0.3)  # the weights as resolved


@pytest.mark.parametrize("command", ["merge", "sweep"])
def test_a_config_file_means_the_same_wherever_it_is_read(
    merge_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    config = tmp_path / "merge.yaml"
    config.write_text(
        "task_adapter: ./task\nsafety_adapter: ./safety\naligned_model: models/al--igned\n"
        "unaligned_model: ./unaligned\noutput: merged\n"
    )
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "models").mkdir(parents=True)
    (elsewhere / "models" / "al--igned").symlink_to(merge_files.aligned)
    monkeypatch.chdir(elsewhere)
    result = invoke(command, "--config", config)
    assert result.exit_code == 4
    assert "models/al--igned: no such folder here, and the hub does not give that model" in result.stderr
    # What is typed counts from where it is.
    assert invoke(command, "--config", config, "--aligned-model", "models/al--igned").exit_code == 0


def test_flags_override_a_config_file(merge_files, tmp_path: Path) -> None:
    config = tmp_path / "merge.yaml"
    config.write_text(
        "task_adapter: ./task\nsafety_adapter: ./gone\naligned_model: ./aligned\n"
        "unaligned_model: ./unaligned\noutput: merged\nmerge: {quantile: 0.5, max_error: 0.1}\n"
    )
    flags = ("--safety-adapter", merge_files.safety, "--output", tmp_path / "o", "--count", 1, "--rank", 2)
    result = _invoke("--config", config, *flags, "--json")
    assert result.exit_code == 0, result.output
    options = json.loads(result.stdout)["options"]
    assert {name: options[name] for name in ("quantile", "count", "max_error", "rank")} == {
        "quantile": None,
        "count": 1,
        "max_error": None,
        "rank": 2,
    }
    assert not (tmp_path / "merged").exists()


def test_one_weight_on_the_command_line_stands_for_both_of_the_file(merge_files, tmp_path: Path) -> None:
    config = tmp_path / "merge.yaml"
    names = ("task_adapter", "safety_adapter", "aligned_model", "unaligned_model")
    lines = [f"{name}: {path}" for name, path in zip(names, merge_files, strict=True)]
    merge = "merge: {quantile: 0.5, task_weight: 0.8, safety_weight: 0.2}"
    config.write_text("\n".join([*lines, f"output: {tmp_path / 'm'}", merge]))
    result = _invoke("--config", config, "--task-weight", 0.5, "--json")
    assert json.loads(result.stdout)["weights"] == [0.5, 0.5]


def test_a_config_file_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "merge.yaml").write_text("task_adaptor: x\n")
    result = _invoke("--config", tmp_path / "merge.yaml")
    assert result.exit_code == 4
    assert "task_adaptor: unknown key; did you mean task_adapter?" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "merged"),
    [
        (["--count", 1], 1),
        (["--modules", "*.q_proj"], 2),
        (["--modules", "*.0.self_attn.q_proj", "--modules", "*.1.self_attn.v_proj"], 2),
        (["--method", "peft_dare_linear", "--density", 0.5, "--seed", 3, "--quantile", 0.25], 1),
    ],
)
def test_layers_are_chosen_by_any_flag(merge_files, tmp_path: Path, arguments: list, merged: int) -> None:
    result = _invoke(*_own(tmp_path), *arguments, "--output", tmp_path / "o", "--json")
    assert result.exit_code == 0, result.output
    assert sum(layer["merged"] for layer in json.loads(result.stdout)["layers"]) == merged
    assert result.stderr == ""


def test_a_method_that_needs_no_safety_adapter_is_not_asked_for_one(merge_files, tmp_path: Path) -> None:
    arguments = ["--task-adapter", merge_files.task, "--aligned-model", merge_files.aligned]
    arguments += ["--unaligned-model", merge_files.unaligned, "--output", tmp_path / "o", "--method"]
    result = _invoke(*arguments, "scale", "--task-weight", 0.5)
    assert result.exit_code == 0, result.output
    assert "scale, weight 0.5" in result.stdout
    assert "missing: --safety-adapter" in _invoke(*arguments, "exact").stderr


def test_the_error_of_a_smaller_rank_is_shown(merge_files, tmp_path: Path) -> None:
    result = _invoke(*_own(tmp_path), "--quantile", 1, "--rank", 2, "--output", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert "at most 0." in result.stdout
    report = MergeReport.read(tmp_path / "o" / "safemerge_report.json")
    assert report.rank == 2
    assert max(layer.error for layer in report.layers) > 0


def test_settings_that_hardly_can_be_meant_are_warned_of(merge_files, tmp_path: Path) -> None:
    result = _invoke(
        *_own(tmp_path), "--threshold", 35, "--task-weight", 7, "--output", tmp_path / "o", "--json"
    )
    assert result.exit_code == 0
    assert "35 merges every layer" in result.stderr
    assert "--task-weight 7 lies outside [0, 1]" in result.stderr
    json.loads(result.stdout)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], 4), (["--on-undefined", "merge"], 0), (["--modules", "*.q_proj"], 0), (["--method", "scale"], 0)],
)
def test_equal_models_are_refused_where_nothing_would_be_merged(
    merge_files, tmp_path: Path, arguments: list[str], code: int
) -> None:
    inputs = ["--task-adapter", merge_files.task, "--safety-adapter", merge_files.safety]
    inputs += ["--aligned-model", merge_files.aligned, "--unaligned-model", merge_files.aligned]
    result = _invoke(*inputs, *arguments, "--output", tmp_path / "o")
    assert result.exit_code == code
    assert (tmp_path / "o").exists() is (code == 0)
    if code:
        assert "got two that are equal in all 4 layers of the adapter" in result.stderr


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--quantile", "50", "expected less than or equal to 1, got '50'; as a share, 50 % is 0.5"),
        ("--rank", "x", "expected a valid integer, got 'x'"),
        ("--on-undefined", "x", "'x' is not one of 'keep', 'merge', 'fail'"),
    ],
)
def test_a_value_of_a_flag_is_told_as_one_of_a_config(flag: str, value: str, said: str) -> None:
    result = invoke("merge", flag, value, width=200)
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}': {said}" in result.stderr
