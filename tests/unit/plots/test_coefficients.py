"""The page of learned coefficients: losses against λ, and a heat map of each weight."""

from __future__ import annotations

import pytest

from safemerge.plots.coefficients import coefficient_row, coefficients_html
from safemerge.reports.learning import Coefficients, FitCost, FitLosses, LayerCoefficients, Losses
from tests.unit.plots.test_pages import figure


def losses(task: float, safety: float) -> Losses:
    return Losses(task=task, safety=safety)


def record(harm_weight: float, module: str = "layers.{}.q", beta: float | None = 1.25) -> Coefficients:
    at = ((2, 0.5, beta), (10, 0.75, 0.25))
    return Coefficients(
        safemerge_version="0",
        harm_weight=harm_weight,
        layers=tuple(
            LayerCoefficients(
                module=module.format(depth),
                task=task,
                safety=safety,
                start_task=1.0,
                start_safety=None if safety is None else 0.0,
            )
            for depth, task, safety in at
        ),
        losses=FitLosses(
            start=losses(1, 1),
            final=losses(1, 1),
            validation_start=losses(1.0, 2.0),
            validation_final=losses(1.1, 1.5 / harm_weight),
        ),
        steps=20,
        steps_run=40,
        examples={},
        cost=FitCost(wall_s=12.34, trained_tokens=1, measured_tokens=1),
        settings={},
        digests={},
        device="cpu",
        dtype="float32",
    )


def test_losses_are_drawn_against_the_harm_weight_beside_those_of_the_start():
    page = coefficients_html([record(1), record(3)])
    traces, layout = figure(page)
    assert layout["xaxis"]["type"] == "category"
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in traces}
    assert drawn == {
        "task loss learned": (["1", "3"], [1.1, 1.1]),
        "task loss at the start": (["1", "3"], [1.0, 1.0]),
        "safety loss learned": (["1", "3"], [1.5, 0.5]),
        "safety loss at the start": (["1", "3"], [2.0, 2.0]),
    }
    assert "Coefficients of 2 layers, for λ = 1, 3" in page


def test_each_harm_weight_has_a_map_of_either_weight_in_natural_order():
    page = coefficients_html([record(1), record(3)])
    (task,), layout = figure(page, "figure4")
    assert layout["title"]["text"] == "λ = 3: α, weight of the task update"
    assert (task["x"], task["y"], task["z"]) == (["2", "10"], ["q"], [[0.5, 0.75]])
    (safety,), _ = figure(page, "figure5")
    assert (safety["z"], safety["zmin"], safety["zmax"]) == ([[1.25, 0.25]], 0, 1.25)
    assert safety["text"][0][0] == "<b>layers.2.q</b><br>β = 1.2500, from 0.0000"
    assert "figure6" not in page


def test_a_layer_without_a_safety_update_is_left_blank():
    page = coefficients_html([record(1, beta=None)])
    (safety,), _ = figure(page, "figure3")
    assert (safety["z"], safety["text"][0][0], safety["zmax"]) == ([[None, 0.25]], "", 1.0)


@pytest.mark.parametrize("beta", [1.25, None])
def test_a_row_has_losses_steps_and_means(beta: float | None):
    mean = "0.750" if beta else "0.250"
    assert coefficient_row(record(3, beta=beta)) == [
        *("3", "20 of 40", "1.1000", "1.0000", "0.5000", "2.0000", "0.625", mean, "12.3")
    ]


def test_names_cannot_break_the_page():
    page = coefficients_html([record(1, module="layers.{}.</script><b>")])
    assert "</script><b>" not in page
