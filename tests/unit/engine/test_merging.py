"""The merge on files: what it writes, what it points out, what PEFT makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safemerge import __version__, merge_adapters
from safemerge.config.merge import MergeConfig
from safemerge.engine.merging import merge_arms
from safemerge.errors import (
    ConfigError,
    MismatchError,
)
from safemerge.records import MergeReport
from safemerge.storage.adapters import adapter_digest, read_adapter
from tests.unit.conftest import MODULES

OUTPUTS = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "safemerge_layers.html",
    "safemerge_report.json",
}


def test_writes_adapter_report_and_plot(merge_files, tmp_path: Path):
    output = tmp_path / "merged"
    report = merge_adapters(*merge_files, output=str(output), quantile=0.5, task_weight=0.7)
    assert {path.name for path in output.iterdir()} == OUTPUTS
    assert MergeReport.read(output / "safemerge_report.json") == report
    assert report.safemerge_version == __version__
    assert report.method == "exact"
    assert report.quantile == 0.5
    assert report.weights == (0.7, 1 - 0.7)
    assert tuple(layer.module for layer in report.layers) == MODULES
    assert sum(layer.merged for layer in report.layers) == 2
    assert all(layer.merged == (layer.cosine < report.threshold) for layer in report.layers)
    assert report.digests["task_adapter"] == adapter_digest(merge_files.task)
    assert {len(digest) for digest in report.digests.values()} == {64}
    assert len(set(report.digests.values())) == 4
    assert MODULES[0] in (output / "safemerge_layers.html").read_text()
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    tensors = load_file(output / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {6}


def test_repeated_merges_give_the_same_bytes(merge_files, tmp_path: Path):
    for name in ("one", "two"):
        merge_adapters(*merge_files, output=tmp_path / name, quantile=0.5)
    for name in OUTPUTS:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_threshold_zero_copies_the_task_adapter_bit_for_bit(merge_files, tmp_path: Path):
    report = merge_adapters(*merge_files, output=tmp_path / "merged", threshold=0)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (merge_files.task / name).read_bytes()
    assert not any(layer.merged for layer in report.layers)


def test_updates_in_full_are_stored_with_their_errors(merge_files, tmp_path: Path):
    report = merge_adapters(
        *merge_files, output=tmp_path / "merged", method="dare_ties", density=0.4, count=3, max_error=0.6
    )
    assert sum(layer.merged for layer in report.layers) == 3
    assert all(0 <= layer.error <= 0.6 for layer in report.layers)
    ranks = {pair.rank for pair in read_adapter(tmp_path / "merged").pairs.values()}
    assert ranks == {json.loads((tmp_path / "merged" / "adapter_config.json").read_text())["r"]}


def test_sources_may_be_strings_and_the_output_deep(merge_files, tmp_path: Path):
    merge_adapters(*map(str, merge_files), output=tmp_path / "a" / "b" / "merged")
    assert (tmp_path / "a" / "b" / "merged").is_dir()


def test_progress_is_told_layer_by_layer(merge_files, tmp_path: Path):
    told: list[tuple[int, int, str]] = []
    merge_adapters(*merge_files, output=tmp_path / "merged", progress=lambda *state: told.append(state))
    assert told == [(number, 4, module) for number, module in enumerate(MODULES, start=1)]


def test_torch_threads_are_given_back(merge_files, tmp_path: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        merge_adapters(*merge_files, output=tmp_path / "merged")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_hashing_whole_files_covers_tensors_that_are_not_read(merge_files, tmp_path: Path, edit_tensors):
    def digests(name: str, hash_files: bool) -> dict[str, str]:
        report = merge_adapters(*merge_files, output=tmp_path / name, hash_files=hash_files)
        return report.digests

    read, whole = digests("a", False), digests("b", True)
    assert read["aligned_model"] != whole["aligned_model"]
    edit_tensors(merge_files.aligned / "model.safetensors", lambda t: t["model.embed_tokens.weight"].add_(1))
    assert digests("c", False) == read
    changed = digests("d", True)
    assert changed["aligned_model"] != whole["aligned_model"]
    assert changed["unaligned_model"] == whole["unaligned_model"]


def test_adapters_of_another_base_model_are_refused_or_pointed_out(merge_files, tmp_path: Path, edit_json):
    output = tmp_path / "merged"
    for folder, base in ((merge_files.task, "org/a"), (merge_files.safety, "org/b")):
        edit_json(folder / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(MismatchError, match=r"got org/a .* org/b"):
        merge_adapters(*merge_files, output=output)
    assert not output.exists()
    edit_json(merge_files.safety / "adapter_config.json", base_model_name_or_path="/models/b")
    report = merge_adapters(*merge_files, output=output)
    assert [warning.partition(" as ")[0] for warning in report.warnings] == [
        "the task adapter names org/a",
        "the safety adapter names /models/b",
    ]
    assert MergeReport.read(output / "safemerge_report.json") == report


def test_layers_of_one_adapter_alone_are_reported(merge_files, tmp_path: Path, edit_tensors):
    def drop(module: str):
        def change(tensors: dict[str, torch.Tensor]) -> None:
            for side in "AB":
                del tensors[f"base_model.model.{module}.lora_{side}.weight"]

        return change

    edit_tensors(merge_files.task / "adapter_model.safetensors", drop(MODULES[3]))
    edit_tensors(merge_files.safety / "adapter_model.safetensors", drop(MODULES[0]))
    report = merge_adapters(*merge_files, output=tmp_path / "merged", threshold=1.1)
    assert report.safety_only_layers == (MODULES[3],)
    assert [(layer.module, layer.merged) for layer in report.layers] == [
        (MODULES[0], False), (MODULES[1], True), (MODULES[2], True),
    ]  # fmt: skip
    assert report.layers[0].reason == "kept: the safety adapter lacks the layer"
    assert read_adapter(tmp_path / "merged").pairs.keys() == set(MODULES[:3])


def test_one_adapter_given_twice_is_warned_of(merge_files, tmp_path) -> None:
    report = merge_adapters(
        merge_files.task,
        merge_files.task,
        merge_files.aligned,
        merge_files.unaligned,
        output=tmp_path / "out",
    )
    assert "the task and the safety adapter are one and the same: nothing is repaired" in report.warnings


def test_swapped_models_are_warned_of(merge_files, edit_json, tmp_path) -> None:
    edit_json(merge_files.task / "adapter_config.json", base_model_name_or_path="models/aligned")
    models = merge_files.unaligned, merge_files.aligned
    report = merge_adapters(merge_files.task, merge_files.safety, *models, output=tmp_path / "out")
    assert any("are the two models swapped?" in warning for warning in report.warnings)
    right = merge_adapters(merge_files.task, merge_files.safety, *models[::-1], output=tmp_path / "right")
    assert not any("swapped" in warning for warning in right.warnings)


# --- arms -----------------------------------------------------------------------


def test_arms_are_scored_once_and_written_together(merge_files, tmp_path: Path):
    told = []
    arms = {
        "safemerge": MergeConfig(quantile=0.5, task_weight=0.6),
        "scale": MergeConfig(method="scale", task_weight=0.6),
        "scale_selected": MergeConfig(method="scale_selected", quantile=0.5, task_weight=0.6),
    }
    reports = merge_arms(
        *merge_files, output=tmp_path / "arms", arms=arms, progress=lambda *state: told.append(state)
    )
    assert len(told) == 4
    assert reports.keys() == arms.keys()
    for arm, report in reports.items():
        assert {path.name for path in (tmp_path / "arms" / arm).iterdir()} == OUTPUTS
        assert MergeReport.read(tmp_path / "arms" / arm / "safemerge_report.json") == report
        assert report.method == arms[arm].method
    assert reports["scale"].threshold is None
    alone = merge_adapters(*merge_files, output=tmp_path / "alone", quantile=0.5, task_weight=0.6)
    assert reports["safemerge"] == alone


def test_one_failing_arm_leaves_no_output(merge_files, tmp_path: Path, edit_tensors):
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name] = tensors[name][:2] if "lora_A" in name else tensors[name][:, :2].contiguous()

    edit_tensors(merge_files.safety / "adapter_model.safetensors", narrow)
    config = merge_files.safety / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 2}))
    before = sorted(tmp_path.iterdir())
    arms = {"exact": MergeConfig(), "linear": MergeConfig(method="peft_linear", threshold=2)}
    with pytest.raises(MismatchError, match="expected adapters of one rank"):
        merge_arms(*merge_files, output=tmp_path / "arms", arms=arms)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", ""])
def test_an_arm_needs_a_plain_name(merge_files, tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="expected plain names, got"):
        merge_arms(*merge_files, output=tmp_path / "arms", arms={name: MergeConfig()})


# --- PEFT --------------------------------------------------------------------------


@pytest.mark.integration
def test_peft_loads_the_merged_adapter_and_its_logits_are_those_of_the_formula(
    tiny_pair, tiny_adapter, tmp_path: Path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    task = tiny_adapter(seed=1, r=4, alpha=6, target_modules=("q_proj", "v_proj", "down_proj"), scale=0.3)
    safety = tiny_adapter(seed=2, r=2, alpha=2, target_modules=("q_proj", "v_proj", "up_proj"), scale=0.3)
    report = merge_adapters(
        task, safety, tiny_pair.aligned, tiny_pair.unaligned, output=tmp_path / "merged", quantile=0.5,
        task_weight=0.7,
    )  # fmt: skip
    assert 0 < sum(layer.merged for layer in report.layers) < len(report.layers)
    tokens = torch.arange(4, 20)[None]

    dense = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned, dtype=torch.float64)
    task_pairs, safety_pairs = read_adapter(task).pairs, read_adapter(safety).pairs
    with torch.no_grad():
        for layer in report.layers:
            update = task_pairs[layer.module].delta(torch.float64)
            if layer.merged:
                update = 0.7 * update + 0.3 * safety_pairs[layer.module].delta(torch.float64)
            dense.get_submodule(layer.module).weight.add_(update)
        expected = dense(tokens).logits

    base = AutoModelForCausalLM.from_pretrained(tiny_pair.aligned)
    with torch.no_grad():
        untouched = base(tokens).logits
    model = PeftModel.from_pretrained(base, tmp_path / "merged")
    with torch.no_grad():
        logits = model(tokens).logits
    # fp32 through two layers against float64; the merge itself moves the logits a thousand times as far.
    assert float((logits - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert float((logits - untouched).abs().max()) > 0.1 * float(expected.abs().max())
    generated = model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > tokens.shape[1]
