"""The pages: what they show of a report, and that they stand alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from safemerge.plots import layer_plot_html
from safemerge.records import LayerReport, MergeReport

CALL = 'Plotly.newPlot("figure", ...'


def _report(
    layers: Sequence[LayerReport], threshold: float | None = 0.35, quantile: float | None = None
) -> MergeReport:
    return MergeReport(
        safemerge_version="0",
        method="exact",
        threshold=threshold,
        quantile=quantile,
        weights=(0.8, 0.2),
        digests={},
        layers=tuple(layers),
    )


def _layer(module: str, cosine: float | None, merged: bool, reason: str = "because") -> LayerReport:
    return LayerReport(
        module=module, cosine=cosine, merged=merged, reason=reason, task_norm=1.25, safety_norm=None
    )


def _figure(page: str) -> tuple[list[dict], dict]:
    """Traces and layout, as the page hands them to plotly."""
    figure = page[page.rindex(CALL) + len(CALL) :]
    traces, layout, _ = json.JSONDecoder().raw_decode(figure)[0]
    return traces, layout


def _mixed() -> MergeReport:
    return _report(
        [
            _layer("model.layers.0.self_attn.q_proj", 0.2, True),
            _layer("model.layers.0.self_attn.v_proj", 0.5, False),
            _layer("model.layers.10.self_attn.q_proj", None, False),
            _layer("model.layers.2.self_attn.q_proj", None, True),
        ]
    )


def test_every_layer_is_drawn_once_in_the_state_it_has() -> None:
    traces, _ = _figure(layer_plot_html(_mixed()))
    drawn = {(trace["name"], x, y) for trace in traces for x, y in zip(trace["x"], trace["y"], strict=True)}
    assert drawn == {
        ("merged", "0", 0.2),
        ("kept as fine-tuned", "0", 0.5),
        ("kept, cosine undefined", "10", 0),
        ("merged, cosine undefined", "2", 0),
    }


def test_rows_are_module_kinds_and_layers_stand_in_their_numeric_order() -> None:
    _, layout = _figure(layer_plot_html(_mixed()))
    titles = [annotation["text"] for annotation in layout["annotations"]]
    assert titles == ["<b>q_proj</b>", "<b>v_proj</b>"]
    assert layout["xaxis"]["categoryarray"] == ["0", "2", "10"]


def test_kinds_that_share_a_last_name_are_told_apart() -> None:
    layers = [
        _layer("vision.layers.0.q_proj", 0.1, True),
        _layer("text.layers.0.self_attn.q_proj", 0.1, True),
        _layer("text.layers.0.experts.3.up", 0.1, True),
        _layer("lm_head", 0.1, True),
    ]
    traces, layout = _figure(layer_plot_html(_report(layers)))
    titles = [annotation["text"] for annotation in layout["annotations"]]
    assert titles == ["<b>layers.q_proj</b>", "<b>self_attn.q_proj</b>", "<b>up</b>", "<b>lm_head</b>"]
    assert [trace["x"] for trace in traces] == [["0"], ["0"], ["0.3"], ["–"]]


def test_the_threshold_is_a_line_in_each_row_and_left_out_where_there_is_none() -> None:
    _, layout = _figure(layer_plot_html(_mixed()))
    assert [shape["y0"] for shape in layout["shapes"]] == [0.35, 0.35]
    page = layer_plot_html(_report(_mixed().layers, threshold=None))
    assert _figure(page)[1]["shapes"] == []
    assert "no threshold" in page


def test_a_threshold_above_one_does_not_squeeze_the_bars() -> None:
    _, layout = _figure(layer_plot_html(_report(_mixed().layers, threshold=50.0)))
    assert layout["yaxis1"]["range"][1] == pytest.approx(0.5 * 1.12)


def test_hover_tells_module_cosine_reason_and_norms() -> None:
    traces, _ = _figure(layer_plot_html(_mixed()))
    merged = next(trace for trace in traces if trace["name"] == "merged")
    assert merged["hovertext"] == [
        "<b>model.layers.0.self_attn.q_proj</b><br>cosine 0.2000<br>merged: because"
        "<br>‖ΔW<sub>task</sub>‖ 1.25<br>‖ΔW<sub>safety</sub>‖ absent"
    ]


def test_names_cannot_leave_the_page_or_become_markup() -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    page = layer_plot_html(_report([_layer(f"model.layers.0.{evil}", 0.2, True, reason=evil)]))
    assert evil not in page
    assert "<img" not in page[page.rindex(CALL) :]


def test_a_page_stands_alone() -> None:
    page = layer_plot_html(_mixed())
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)=", page)
    assert page.startswith("<!doctype html>")


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_layers_is_drawn_with_labels_that_fit(count: int) -> None:
    layers = [_layer(f"model.layers.{i}.q_proj", i / 500, i < 175) for i in range(count)]
    page = layer_plot_html(_report(layers, quantile=0.35))
    traces, layout = _figure(page)
    assert sum(len(trace["x"]) for trace in traces) == count
    assert count / layout["xaxis"]["dtick"] <= 40
    assert f"{min(count, 175)} of {count} layers merged" in page
    assert "(quantile 0.35)" in page


def test_importing_the_module_loads_no_plotly() -> None:
    code = "import sys, safemerge.plots; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
