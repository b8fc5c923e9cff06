"""Full models from files: one adapter or a merge of two, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safemerge.engine import exporting
from safemerge.engine.exporting import export_adapter, export_merge
from safemerge.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    HubError,
    MismatchError,
    NonFiniteError,
    OutputExistsError,
)
from safemerge.records import MergeReport
from safemerge.reports.adapters import ExportReport
from safemerge.storage.adapters import read_adapter
from safemerge.storage.hub_upload import HubTarget
from tests.unit.conftest import MODULES, MergeFiles

# A sum of six products and a weight, of numbers near 1, in fp32.
FP32 = {"rtol": 0, "atol": 1e-5}


class StandInHub:
    """Takes what it is sent."""

    def __init__(self, name: str = "me") -> None:
        self.name = name
        self.sent: list[Path] = []

    def whoami(self) -> dict[str, Any]:
        return {"name": self.name}

    def repo_info(self, repo_id: str) -> Any:
        raise NotImplementedError

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        pass

    def upload_folder(self, *, folder_path: Path, **_: Any) -> None:
        assert (folder_path / "config.json").exists()
        self.sent.append(folder_path)


def _deltas(adapter: Path) -> dict[str, Tensor]:
    return {module: pair.delta(torch.float64) for module, pair in read_adapter(adapter).pairs.items()}


def _merge(files: MergeFiles, output: Path, **options: Any) -> ExportReport:
    return export_merge(files.task, files.safety, files.aligned, files.unaligned, output=output, **options)


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in MergeFiles._fields)


def test_an_adapter_is_folded_in_and_the_report_says_so(merge_files: MergeFiles, tmp_path: Path) -> None:
    seen = []
    report = export_adapter(
        merge_files.aligned,
        merge_files.task,
        output=tmp_path / "new",
        progress=lambda *step: seen.append(step),
    )
    old, new = (load_file(folder / "model.safetensors") for folder in (merge_files.aligned, tmp_path / "new"))
    for module, delta in _deltas(merge_files.task).items():
        expected = old[f"{module}.weight"].double() + delta
        torch.testing.assert_close(new[f"{module}.weight"].double(), expected, **FP32)
    assert report.changed == tuple(f"{module}.weight" for module in MODULES)
    assert all(torch.equal(old[name], new[name]) for name in old if name not in report.changed)
    assert ExportReport.read(tmp_path / "new" / "safemerge_export.json") == report
    assert report.model is report.adapter is report.method is None
    assert report.digests.keys() == {"adapter"}
    tensor_bytes = sum(tensor.nbytes for tensor in new.values())
    assert seen[-1][:2] == (tensor_bytes, tensor_bytes)
    assert report.n_bytes == (tmp_path / "new" / "model.safetensors").stat().st_size
    assert (tmp_path / "new" / "config.json").read_bytes() == (
        merge_files.aligned / "config.json"
    ).read_bytes()
    card = (tmp_path / "new" / "README.md").read_text()
    assert "The weights of `a local model` with the LoRA adapter `a local adapter` folded in" in card
    assert str(tmp_path) not in card + report.to_json()


def test_a_merge_is_folded_in_as_the_method_makes_it(merge_files: MergeFiles, tmp_path: Path) -> None:
    scored: list[str] = []
    report = _merge(
        merge_files,
        tmp_path / "new",
        modules=["*.q_proj"],
        task_weight=0.7,
        scoring_progress=lambda _done, _total, module: scored.append(module),
    )
    task, safety = _deltas(merge_files.task), _deltas(merge_files.safety)
    old, new = (load_file(folder / "model.safetensors") for folder in (merge_files.aligned, tmp_path / "new"))
    for module in MODULES:
        delta = 0.7 * task[module] + 0.3 * safety[module] if module.endswith("q_proj") else task[module]
        torch.testing.assert_close(
            new[f"{module}.weight"].double(), old[f"{module}.weight"].double() + delta, **FP32
        )
    assert report.method == "exact"
    assert report.digests.keys() == {"task_adapter", "safety_adapter", "aligned_model", "unaligned_model"}
    merge = MergeReport.read(tmp_path / "new" / "safemerge_report.json")
    assert [layer.merged for layer in merge.layers] == [module.endswith("q_proj") for module in MODULES]
    assert sorted(scored) == sorted(MODULES)
    assert "repaired for safety by the method `exact`" in (tmp_path / "new" / "README.md").read_text()


def test_a_method_without_safety_adapter_needs_none(merge_files: MergeFiles, tmp_path: Path) -> None:
    export_merge(
        merge_files.task,
        None,
        merge_files.aligned,
        merge_files.unaligned,
        output=tmp_path / "new",
        method="scale",
        task_weight=0.5,
    )
    old, new = (load_file(folder / "model.safetensors") for folder in (merge_files.aligned, tmp_path / "new"))
    for module, delta in _deltas(merge_files.task).items():
        expected = old[f"{module}.weight"].double() + 0.5 * delta
        torch.testing.assert_close(new[f"{module}.weight"].double(), expected, **FP32)


def test_a_dtype_that_is_not_offered_is_refused(merge_files: MergeFiles, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="dtype: expected one of keep, bfloat16, float16, float32, got 'int8'"
    ):
        export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new", dtype="int8")  # type: ignore[arg-type]
    assert _left(tmp_path) == []


def test_an_existing_output_is_left_alone(merge_files: MergeFiles, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for run in (
        lambda: export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new"),
        lambda: _merge(merge_files, tmp_path / "new"),
    ):
        with pytest.raises(OutputExistsError, match="expected a path that does not exist yet"):
            run()
    assert list((tmp_path / "new").iterdir()) == []


def test_an_adapter_of_another_base_is_refused(
    merge_files: MergeFiles, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith("lora_A.weight"):
                tensors[name] = torch.ones(3, 9)

    edit_tensors(merge_files.task / "adapter_model.safetensors", widen)
    with pytest.raises(
        MismatchError, match=r"does not fit: model.layers.0.self_attn.q_proj \(expected \(8, 9\)"
    ):
        export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new")


def test_quantised_weights_are_refused(
    merge_files: MergeFiles, tmp_path: Path, edit_json: Callable[..., None]
) -> None:
    edit_json(merge_files.aligned / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="got quantised ones"):
        export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new")


def test_without_room_nothing_begins(
    merge_files: MergeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    monkeypatch.setattr(exporting, "score_adapters", lambda *_, **__: pytest.fail("it began to score"))
    for run in (
        lambda: export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new"),
        lambda: _merge(merge_files, tmp_path / "new"),
    ):
        with pytest.raises(DiskFullError, match=r"new: expected 1 MB of room, got 0 MB free"):
            run()
    assert _left(tmp_path) == []


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), RuntimeError("x")]
)
def test_an_interrupted_export_leaves_nothing(
    merge_files: MergeFiles, tmp_path: Path, interruption: BaseException
) -> None:
    def stop(_done: int, _total: int, tensor: str) -> None:
        if "q_proj" in tensor:
            raise interruption

    kind = DiskFullError if isinstance(interruption, OSError) else type(interruption)
    with pytest.raises(kind):
        export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new", progress=stop)
    assert _left(tmp_path) == []


def test_a_weight_that_overflows_leaves_nothing(
    merge_files: MergeFiles, tmp_path: Path, edit_tensors: Callable[..., None]
) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    edit_tensors(merge_files.aligned / "model.safetensors", lambda tensors: tensors[name].mul_(1e6))
    with pytest.raises(NonFiniteError, match=f"{name}: expected finite numbers to store as F16"):
        export_adapter(merge_files.aligned, merge_files.task, output=tmp_path / "new", dtype="float16")
    assert _left(tmp_path) == []


def test_the_hub_is_asked_first_and_gets_the_whole_folder(merge_files: MergeFiles, tmp_path: Path) -> None:
    for number, run in enumerate(
        (
            lambda **to: export_adapter(merge_files.aligned, merge_files.task, **to),
            lambda **to: _merge(merge_files, **to),
        )
    ):
        output, hub = tmp_path / f"new{number}", StandInHub()
        run(output=output, hub=HubTarget("me/model", api=hub))
        assert hub.sent == [output]
        with pytest.raises(HubError, match="expected one of your names"):
            run(output=tmp_path / "other", hub=HubTarget("me/model", api=StandInHub("you")))
        assert not (tmp_path / "other").exists()


def test_hub_ids_are_kept_in_report_and_card(
    merge_files: MergeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"org/base@abc": merge_files.aligned, "me/lora": merge_files.task}
    monkeypatch.setattr(exporting, "resolve", lambda source, _kind="model": places[source])
    report = export_adapter("org/base@abc", "me/lora", output=tmp_path / "new")
    assert (report.model, report.adapter) == ("org/base", "me/lora")
    card = (tmp_path / "new" / "README.md").read_text()
    assert "base_model: org/base\n" in card
    assert "The weights of `org/base` with the LoRA adapter `me/lora` folded in" in card


def test_the_report_of_a_merge_is_that_of_the_merged_adapter(merge_files: MergeFiles, tmp_path: Path) -> None:
    from safemerge.engine.merging import merge_adapters

    _merge(merge_files, tmp_path / "new", quantile=0.5)
    report = merge_adapters(*merge_files, output=tmp_path / "adapter", quantile=0.5)
    # Folded into weights it is stored at no rank.
    assert MergeReport.read(tmp_path / "new" / "safemerge_report.json") == report.model_copy(
        update={"rank": None}
    )
    export_adapter(merge_files.aligned, tmp_path / "adapter", output=tmp_path / "same")
    assert MergeReport.read(tmp_path / "same" / "safemerge_report.json") == report
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("new", "same"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], **FP32)


@pytest.mark.parametrize("size", [{"rank": 4}, {"max_error": 0.1}], ids=str)
def test_a_full_model_is_stored_at_no_rank(merge_files: MergeFiles, tmp_path: Path, size: dict) -> None:
    with pytest.raises(ConfigError, match="expected no rank and no max_error"):
        _merge(merge_files, tmp_path / "new", **size)
    assert not (tmp_path / "new").exists()
