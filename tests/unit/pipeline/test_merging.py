"""The arms of a pipeline's merge: each control is the candidate without its safety adapter, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.config.merge import MergeConfig
from safemerge.engine.merging import merge_options
from safemerge.pipeline.merging import arms_of
from safemerge.reports.learning import LayerCoefficients
from tests.unit.plots.test_coefficients import record

LAYERS = tuple(
    LayerCoefficients(module=f"layers.{depth}.q", task=task, safety=0.5, start_task=1.0, start_safety=0.0)
    for depth, task in enumerate((0.4, 0.8))
)


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({"quantile": 0.5}, 0.8),
        ({"quantile": 0.5, "safety_weight": 0.4}, 0.6),
        ({"method": "ties", "density": 0.5, "count": 3, "task_weight": 0.7}, 0.7),
        ({"method": "safelora", "quantile": 0.5}, 1.0),
        ({"method": "resta"}, 1.0),
        ({"coefficients": "learned"}, 0.6),
        ({"method": "lox", "components": 4, "task_weight": 0.9, "safety_weight": 0.5}, 0.9),
    ],
)
def test_controls_have_the_weight_and_selection_of_the_candidate(
    config: dict, weight: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    learned = record(3).model_copy(update={"layers": LAYERS})
    (tmp_path / "learned").write_text(learned.to_json(), encoding="utf-8")
    candidate, *controls = map(merge_options, arms_of(MergeConfig(**config)).values())
    assert [control.method for control in controls] == ["scale", "scale_selected"]
    for control in controls:
        assert control.weights[0] == pytest.approx(weight)
    if candidate.method in ("resta", "lox", "learned"):  # they change every layer
        assert controls[1].modules == ("*",)
    else:
        assert (controls[1].quantile, controls[1].count) == (candidate.quantile, candidate.count)
