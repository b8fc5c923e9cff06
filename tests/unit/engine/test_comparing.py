"""Two adapters layer by layer: against full matrices in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge import compare_adapters
from safemerge.errors import AdapterError, ConfigError, MismatchError
from safemerge.reports.adapters import DifferenceReport
from safemerge.storage.adapters import read_adapter

Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def drop(*modules: str):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for module in modules:
            for side in "AB":
                del tensors[f"base_model.model.{module}.lora_{side}.weight"]

    return change


def test_figures_are_those_of_the_full_matrices(merge_files) -> None:
    report = compare_adapters(merge_files.task, merge_files.safety)
    first, second = (
        {module: pair.delta(torch.float64) for module, pair in read_adapter(folder).pairs.items()}
        for folder in (merge_files.task, merge_files.safety)
    )
    assert [layer.module for layer in report.layers] == sorted(first)
    # Some dozen float64 roundings.
    for layer in report.layers:
        a, b = first[layer.module], second[layer.module]
        assert layer.norm_a == pytest.approx(float(a.norm()), rel=1e-12)
        assert layer.norm_b == pytest.approx(float(b.norm()), rel=1e-12)
        assert layer.difference == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
        assert layer.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-9)
    a, b = (torch.cat([deltas[module].flatten() for module in sorted(first)]) for deltas in (first, second))
    assert report.difference == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-12)
    assert report.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), rel=1e-9)
    assert not report.same
    assert not report.identical
    assert DifferenceReport.model_validate_json(report.to_json()) == report


def test_an_adapter_is_identical_to_itself(merge_files) -> None:
    report = compare_adapters(merge_files.task, merge_files.task)
    assert report.identical
    assert report.same
    assert report.digests["a"] == report.digests["b"]
    assert report.cosine == pytest.approx(1, abs=1e-12)


def test_another_scale_and_rank_of_the_same_update_is_the_same(merge_files, tmp_path: Path) -> None:
    """Padded with zeros to rank 4, with scale 1 in place of 5/3: equal to a rounding of fp32."""
    other = tmp_path / "other"
    other.mkdir()
    tensors = load_file(merge_files.task / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        padding = (0, 0, 0, 1) if "lora_A" in name else (0, 1)
        factor = 1 if "lora_A" in name else 5 / 3
        tensors[name] = torch.nn.functional.pad(tensor * factor, padding)
    save_file(tensors, other / "adapter_model.safetensors")
    config = json.loads((merge_files.task / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"r": 4, "lora_alpha": 4}))
    report = compare_adapters(merge_files.task, other)
    assert report.same
    assert not report.identical
    assert 0 < report.difference < 1e-6
    assert not compare_adapters(merge_files.task, other, tolerance=0).same


def test_layers_of_one_alone_make_a_difference(merge_files, edit_tensors) -> None:
    edit_tensors(merge_files.task / "adapter_model.safetensors", drop(Q0))
    edit_tensors(merge_files.safety / "adapter_model.safetensors", drop(V1))
    layers = {layer.module: layer for layer in compare_adapters(merge_files.task, merge_files.safety).layers}
    assert layers[Q0].norm_a is None
    assert layers[Q0].norm_b > 0
    assert layers[V1].norm_b is None
    assert {(layers[name].difference, layers[name].cosine) for name in (Q0, V1)} == {(None, None)}
    assert not compare_adapters(merge_files.task, merge_files.safety, tolerance=100).same


@pytest.mark.parametrize("both", [True, False])
def test_zero_updates_have_no_direction(merge_files, edit_tensors, both: bool) -> None:
    zero = [merge_files.task, merge_files.safety] if both else [merge_files.task]
    for folder in zero:
        edit_tensors(
            folder / "adapter_model.safetensors",
            lambda tensors: [tensor.zero_() for tensor in tensors.values()],
        )
    report = compare_adapters(merge_files.task, merge_files.safety)
    assert report.cosine is None
    assert report.difference == (0.0 if both else None)
    assert report.same is both


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_is_a_number_from_0(merge_files, tolerance: float) -> None:
    with pytest.raises(ConfigError, match="tolerance: expected a number of at least 0, got"):
        compare_adapters(merge_files.task, merge_files.safety, tolerance=tolerance)


def test_adapters_of_other_shapes_are_refused_and_all_layers_named(merge_files, edit_tensors) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for module in (Q0, V1):
            name = f"base_model.model.{module}.lora_A.weight"
            tensors[name] = torch.nn.functional.pad(tensors[name], (0, 1))

    edit_tensors(merge_files.safety / "adapter_model.safetensors", widen)
    with pytest.raises(MismatchError, match=rf"{Q0} \(\(8, 8\) and \(8, 9\)\), {V1}"):
        compare_adapters(merge_files.task, merge_files.safety)


def test_an_adapter_that_is_not_there_is_an_error(merge_files, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="expected a folder or a hub id"):
        compare_adapters(merge_files.task, tmp_path / "nowhere")
