"""Scores of many adapters in one pass, and what thresholds would choose."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from safemerge import merge_adapters, score_cosines
from safemerge.engine.cosines import QUANTILES, THRESHOLDS, default_threshold_warning
from safemerge.errors import ConfigError
from safemerge.reports.adapters import AdapterCosines, CosineReport, LayerCosine


def test_cosines_are_those_of_a_merge_and_checkpoints_are_read_once(merge_files, tmp_path) -> None:
    told = []
    report = score_cosines(
        [merge_files.task, merge_files.safety],
        merge_files.aligned,
        merge_files.unaligned,
        digests=True,
        progress=lambda *state: told.append(state),
    )
    assert len(told) == 4
    assert [adapter.name for adapter in report.adapters] == [str(merge_files.task), str(merge_files.safety)]
    merged = merge_adapters(*merge_files, output=tmp_path / "merged", threshold=0.5)
    scored = {layer.module: layer.cosine for layer in report.adapters[0].layers}
    assert scored == {layer.module: layer.cosine for layer in merged.layers}
    assert report.digests == {name: merged.digests[name] for name in ("aligned_model", "unaligned_model")}
    assert report.adapters[0].digest == merged.digests["task_adapter"]
    assert CosineReport.model_validate_json(report.to_json()) == report


def test_choices_count_the_layers_below(merge_files) -> None:
    (adapter,) = score_cosines([merge_files.task], merge_files.aligned, merge_files.unaligned).adapters
    assert [choice.threshold for choice in adapter.choices[: len(THRESHOLDS)]] == list(THRESHOLDS)
    assert [choice.quantile for choice in adapter.choices[len(THRESHOLDS) :]] == list(QUANTILES)
    for choice in adapter.choices:
        assert choice.layers == sum(cosine < choice.threshold for cosine in adapter.cosines)
    assert [choice.layers for choice in adapter.choices[len(THRESHOLDS) :]] == [1, 2, 3]


def test_no_adapter_is_an_error(merge_files) -> None:
    with pytest.raises(ConfigError, match="expected at least one task adapter, got none"):
        score_cosines([], merge_files.aligned, merge_files.unaligned)


def test_equal_models_and_other_base_models_are_warned_of(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", base_model_name_or_path="org/other")
    report = score_cosines([merge_files.task], merge_files.aligned, merge_files.aligned)
    doubt, none = report.warnings
    assert "names org/other as its base model" in doubt
    assert none.endswith("no layer has a cosine: alignment did not change the layer")
    assert report.adapters[0].cosines == []
    assert {choice.layers for choice in report.adapters[0].choices} == {0}


def test_an_undefined_cosine_has_its_reason(merge_files, edit_tensors) -> None:
    module = "model.layers.0.self_attn.q_proj"
    weight = load_file(merge_files.aligned / "model.safetensors")[f"{module}.weight"]
    edit_tensors(
        merge_files.unaligned / "model.safetensors", lambda t: t.update({f"{module}.weight": weight})
    )
    (adapter,) = score_cosines([merge_files.task], merge_files.aligned, merge_files.unaligned).adapters
    layer = adapter.layers[0]
    assert (layer.cosine, layer.undefined) == (None, "alignment did not change the layer")
    assert layer.task_norm > 0


def _scored(*cosines: float) -> AdapterCosines:
    layers = tuple(
        LayerCosine(module=f"layers.{i}.q", cosine=cosine, task_norm=1.0) for i, cosine in enumerate(cosines)
    )
    return AdapterCosines(name="it", digest="0", layers=layers, choices=())


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ([0.4, 0.6], "it: the default threshold, 0.35, chooses no layer: cosines lie between 0.4 and 0.6"),
        ([0.1] * 59 + [0.42], "chooses 59 of 60 layers"),
        ([0.1, 0.2], "chooses 2 of 2 layers"),
    ],
)
def test_a_default_that_hardly_tells_layers_apart_is_warned_of(cosines: list[float], said: str) -> None:
    assert said in default_threshold_warning(_scored(*cosines))


def test_a_default_that_does_is_not() -> None:
    assert default_threshold_warning(_scored(0.1, 0.6)) is None
