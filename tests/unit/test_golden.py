"""The golden merges: cosines, choices and updates computed elsewhere, in float64, from the definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from safemerge import merge_adapters
from safemerge.storage.adapters import read_adapter

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/expected.json"))

pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden merges at {GOLDEN}")


def merge(case: Path, output: Path, **options: Any):
    expected = json.loads((case / "expected.json").read_text())
    options = {"threshold": expected["threshold"], "task_weight": expected["weights"][0]} | options
    return merge_adapters(
        case / "task", case / "safety", case / "aligned", case / "unaligned", output=output, **options
    )


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_cosines_and_choices(case: Path, tmp_path: Path):
    expected = json.loads((case / "expected.json").read_text())["layers"]
    report = merge(case, tmp_path / "out")
    assert {layer.module for layer in report.layers} == expected.keys()
    for layer in report.layers:
        assert layer.cosine == pytest.approx(expected[layer.module]["cosine"], abs=1e-6)  # 1e-5 is asked for
        assert layer.merged == expected[layer.module]["merged"]


def test_updates(case: Path, tmp_path: Path):
    expected = load_file(case / "expected_deltas.safetensors")
    merge(case, tmp_path / "out")
    merged = read_adapter(tmp_path / "out").pairs
    assert merged.keys() == expected.keys()
    for module, delta in expected.items():
        error = (merged[module].delta(torch.float64) - delta).norm() / delta.norm()
        assert float(error) < 1e-6, module  # 1e-5 is asked for


@pytest.mark.parametrize(
    "case", [case for case in CASES if (case / "reference_adapter").exists()], ids=lambda case: case.name
)
def test_peft_linear_is_the_published_adapter_bit_for_bit(case: Path, tmp_path: Path):
    merge(case, tmp_path / "out", method="peft_linear")
    ours, reference = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "out", case / "reference_adapter")
    )
    assert ours.keys() == reference.keys()
    assert all(torch.equal(ours[name], reference[name]) for name in reference)
    config, reference_config = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path / "out", case / "reference_adapter")
    )
    assert config == reference_config


def test_the_two_methods_differ(case: Path, tmp_path: Path):
    merge(case, tmp_path / "linear", method="peft_linear")
    expected = load_file(case / "expected_deltas.safetensors")
    pairs = read_adapter(tmp_path / "linear").pairs
    errors = [float((pairs[m].delta() - delta).norm() / delta.norm()) for m, delta in expected.items()]
    assert max(errors) > 0.5


def test_threshold_zero_copies_the_task_adapter(case: Path, tmp_path: Path):
    merge(case, tmp_path / "out", threshold=0)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (case / "task" / name).read_bytes()
