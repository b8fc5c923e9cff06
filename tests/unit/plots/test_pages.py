"""Pages and pictures of scores and sweeps."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from safemerge.errors import MissingDependencyError
from safemerge.plots.cosines import cosines_html, cosines_png, heat
from safemerge.plots.page import html_table
from safemerge.plots.sweep import candidate_row, sweep_html
from safemerge.reports.adapters import AdapterCosines, Candidate, CosineReport, LayerCosine, SweepReport

CALL = 'Plotly.newPlot("{}", ...'


def figure(page: str, name: str = "figure") -> tuple[list[dict], dict]:
    """Traces and layout, as the page hands them to plotly."""
    call = CALL.format(name)
    traces, layout, _ = json.JSONDecoder().raw_decode(page[page.rindex(call) + len(call) :])[0]
    return traces, layout


def _cosines(name: str = "a") -> CosineReport:
    layers = tuple(
        LayerCosine(module=f"layers.{depth}.{kind}", cosine=cosine, task_norm=1.0)
        for depth, kind, cosine in ((0, "q", 0.1), (0, "v", None), (10, "q", 0.3), (2, "q", 0.2))
    )
    adapters = tuple(
        AdapterCosines(name=name, digest="0", layers=layers, choices=()) for name in (name, "other")
    )
    return CosineReport(safemerge_version="0", adapters=adapters, digests={})


def test_heat_has_kinds_by_depth_in_natural_order() -> None:
    kinds, positions, cosines = heat(_cosines().adapters[0])
    assert (kinds, positions) == (["q", "v"], ["0", "2", "10"])
    assert cosines == [[0.1, 0.2, 0.3], [None, None, None]]


def test_a_page_has_a_heat_map_of_each_adapter_and_a_histogram() -> None:
    page = cosines_html(_cosines())
    (heat_map,), layout = figure(page)
    assert heat_map["z"] == [[0.1, 0.2, 0.3], [None, None, None]]
    assert layout["title"]["text"] == "a"
    assert figure(page, "figure2")[1]["title"]["text"] == "other"
    histograms, _ = figure(page, "figure3")
    assert [trace["x"] for trace in histograms] == [[0.1, 0.2, 0.3]] * 2
    assert "Cosines of 8 layers" in page


def test_names_cannot_break_the_page() -> None:
    page = cosines_html(_cosines("</script><b>"))
    assert "</script><b>" not in page
    assert figure(page)[1]["title"]["text"] == "&lt;/script>&lt;b>"


def test_a_png_depends_on_the_report_alone() -> None:
    pytest.importorskip("matplotlib")
    image = cosines_png(_cosines("100 $ x_{1"))
    assert image == cosines_png(_cosines("100 $ x_{1"))
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert width > height > 300


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'safemerge\[plots\]'"):
        cosines_png(_cosines())


def _candidate(name: str, **figures) -> Candidate:
    known = {
        "layers_merged": 3,
        "threshold": 0.25,
        "change": 0.5,
        "safety_cosine": 0.1,
        "rank": 8,
        "error": 0.0,
    }
    return Candidate(name=name, options={"method": name.partition("_")[0]}, **(known | figures))


def test_a_sweep_is_drawn_by_method_and_listed() -> None:
    found = (_candidate("exact_a"), _candidate("exact_<b>", change=0.7), _candidate("scale", threshold=None))
    page = sweep_html(SweepReport(safemerge_version="0", digests={}, layers=4, candidates=found))
    traces, _ = figure(page)
    assert [(trace["name"], trace["y"]) for trace in traces] == [("exact", [0.5, 0.7]), ("scale", [0.5])]
    assert "<td>exact_&lt;b&gt;</td><td>3</td><td>0.25</td><td>0.7000</td>" in page


def test_figures_that_could_not_be_had_are_not_invented() -> None:
    row = candidate_row(_candidate("ties", threshold=None, safety_cosine=None))
    assert row == ["ties", "3", "–", "0.5000", "–", "8", "0"]


def test_a_table_is_plain_text() -> None:
    assert html_table(["<a>"], [["&"]]) == (
        "<table><thead><tr><th>&lt;a&gt;</th></tr></thead><tbody><tr><td>&amp;</td></tr></tbody></table>"
    )
