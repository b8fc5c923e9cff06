"""What is said of adapters, and of what stands in the way of a merge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from safemerge import inspect_adapters
from safemerge.reports.adapters import InspectionReport
from safemerge.storage.adapters import adapter_digest, read_adapter

Q0 = "model.layers.0.self_attn.q_proj"


def test_an_adapter_alone_is_described(merge_files) -> None:
    report = inspect_adapters([merge_files.task])
    (summary,) = report.adapters
    assert summary.name == str(merge_files.task)
    assert summary.readable
    assert summary.base_model is None
    assert summary.ranks == {3: 4}
    assert summary.alphas == {"5": 4}
    assert summary.scales == {"1.66667": 4}
    assert not summary.rslora
    assert summary.targets == "q_proj, v_proj × 2 layers"
    assert len(summary.modules) == 4
    # q: 3·(8 + 8), v: 3·(8 + 4), two layers
    assert summary.parameters == 2 * (48 + 36)
    assert summary.size_bytes == (merge_files.task / "adapter_model.safetensors").stat().st_size
    assert summary.dtype == "float32"
    norms = [
        float(pair.delta(torch.float64).norm()) for pair in read_adapter(merge_files.task).pairs.values()
    ]
    assert summary.norm == pytest.approx(math.hypot(*norms), rel=1e-12)
    assert summary.digest == adapter_digest(merge_files.task)
    assert report.problems == report.notes == ()
    assert InspectionReport.model_validate_json(report.to_json()) == report


def test_scales_of_rslora_and_of_patterns_are_counted(merge_files, edit_json) -> None:
    edit_json(
        merge_files.task / "adapter_config.json",
        use_rslora=True,
        lora_alpha=6,
        alpha_pattern={"v_proj": 12},
    )
    (summary,) = inspect_adapters([merge_files.task]).adapters
    assert summary.rslora
    assert summary.alphas == {"6": 2, "12": 2}
    assert summary.scales == {f"{6 / math.sqrt(3):g}": 2, f"{12 / math.sqrt(3):g}": 2}


def test_what_fits_has_no_problems(merge_files) -> None:
    report = inspect_adapters(
        [merge_files.task, merge_files.safety],
        aligned_model=merge_files.aligned,
        unaligned_model=merge_files.unaligned,
    )
    assert (report.problems, report.notes) == ((), ())
    assert report.aligned_model == str(merge_files.aligned)


def test_layers_that_one_lacks_are_noted(merge_files, edit_tensors) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for side in "AB":
            del tensors[f"base_model.model.{Q0}.lora_{side}.weight"]

    edit_tensors(merge_files.safety / "adapter_model.safetensors", drop)
    report = inspect_adapters([merge_files.task, merge_files.safety])
    assert report.notes == (f"{merge_files.safety} lacks 1 of 4 modules: q_proj in layer 0",)
    assert report.problems == ()


def test_a_rank_that_servers_refuse_is_noted(tiny_ranks: list[Path]) -> None:
    (note,) = inspect_adapters(tiny_ranks).notes
    assert note.startswith("an exact merge of the two has rank 18; vLLM serves up to 16")


@pytest.fixture
def tiny_ranks(tmp_path: Path) -> list[Path]:
    """Two adapters of rank 9."""
    from safetensors.torch import save_file

    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        tensors = {
            "base_model.model.layers.0.q.lora_A.weight": torch.ones(9, 10),
            "base_model.model.layers.0.q.lora_B.weight": torch.ones(10, 9),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 9, "lora_alpha": 9, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folders


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda files, json_, tensors: json_(files.task / "adapter_config.json", use_dora=True),
            "use_dora=true",
        ),
        (
            lambda files, json_, tensors: (files.task / "adapter_config.json").write_text("[]"),
            "a JSON object",
        ),
        (lambda files, json_, tensors: (files.task / "adapter_config.json").unlink(), "got none"),
        (
            lambda files, json_, tensors: (files.task / "adapter_model.safetensors").unlink(),
            "expected adapter_model.safetensors",
        ),
    ],
    ids=["dora", "list", "no config", "no tensors"],
)
def test_an_adapter_that_cannot_be_read_is_a_problem(
    merge_files, edit_json, edit_tensors, spoil, said
) -> None:
    spoil(merge_files, edit_json, edit_tensors)
    report = inspect_adapters([merge_files.task, merge_files.safety], aligned_model=merge_files.aligned)
    assert [summary.readable for summary in report.adapters] == [False, True]
    (problem,) = report.problems
    assert said in problem


def test_of_a_refused_adapter_the_config_is_told(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", use_dora=True, base_model_name_or_path="org/m")
    (summary,) = inspect_adapters([merge_files.task]).adapters
    assert (summary.base_model, summary.targets) == ("org/m", "q_proj, v_proj")
    edit_json(merge_files.task / "adapter_config.json", target_modules="all-linear")
    assert inspect_adapters([merge_files.task]).adapters[0].targets == "all-linear"


def test_folders_that_are_not_there_are_problems_each(merge_files, tmp_path: Path) -> None:
    report = inspect_adapters([tmp_path / "a", merge_files.task], aligned_model=tmp_path / "b")
    assert len(report.problems) == 2
    assert not report.adapters[0].readable


def test_other_base_models_are_a_problem_by_hub_id_and_a_note_by_name(merge_files, edit_json) -> None:
    for folder, base in ((merge_files.task, "org/a"), (merge_files.safety, "org/b")):
        edit_json(folder / "adapter_config.json", base_model_name_or_path=base)
    report = inspect_adapters([merge_files.task, merge_files.safety], aligned_model=merge_files.aligned)
    (problem,) = report.problems
    assert problem.startswith("expected adapters of one base model, got org/a (adapter ")
    assert [note.partition(" names ")[2].partition(" ")[0] for note in report.notes] == ["org/a", "org/b"]


def test_shapes_that_differ_are_one_problem(merge_files, edit_tensors) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "q_proj.lora_A" in name]:
            tensors[name] = torch.nn.functional.pad(tensors[name], (0, 1))

    edit_tensors(merge_files.safety / "adapter_model.safetensors", widen)
    report = inspect_adapters([merge_files.task, merge_files.safety], aligned_model=merge_files.aligned)
    apart, unfit = report.problems
    assert apart.startswith("adapters differ in shape in 2 modules (q_proj × 2 layers): ")
    assert "does not fit the aligned model in 2 modules" in unfit
    assert f"{Q0} is (8, 8) there, (8, 9) in the adapter" in unfit


def test_modules_that_a_model_lacks_are_a_problem(merge_files, edit_tensors) -> None:
    edit_tensors(merge_files.unaligned / "model.safetensors", lambda tensors: tensors.pop(f"{Q0}.weight"))
    (problem,) = inspect_adapters([merge_files.task], unaligned_model=merge_files.unaligned).problems
    assert f"{merge_files.task} does not fit the unaligned model: " in problem
    assert Q0 in problem


def test_models_of_other_architectures_and_one_model_twice_are_problems(merge_files, edit_json) -> None:
    (same,) = inspect_adapters(
        [merge_files.task], aligned_model=merge_files.aligned, unaligned_model=merge_files.aligned
    ).problems
    assert "are one folder" in same
    edit_json(merge_files.unaligned / "config.json", model_type="qwen2")
    (other,) = inspect_adapters(
        [merge_files.task], aligned_model=merge_files.aligned, unaligned_model=merge_files.unaligned
    ).problems
    assert "model_type (aligned llama, unaligned qwen2)" in other
