"""Candidates of a grid, weighed without being written: against the adapters that merges write."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch

from safemerge import merge_adapters, sweep_adapters
from safemerge.config.grid import SweepGrid
from safemerge.core import methods
from safemerge.core.options import MergeOptions
from safemerge.engine import sweeping
from safemerge.engine.sweeping import candidates
from safemerge.errors import ConfigError, OutputExistsError
from safemerge.reports.adapters import SweepReport
from safemerge.storage.adapters import read_adapter

GRIDDED = tuple(name for name in methods.names() if not methods.get(name).weighs_layers)
GRID = SweepGrid(
    methods=GRIDDED,  # all: one that looks at single entries must say that it prunes
    thresholds=(0.0,),
    quantiles=(0.5,),
    counts=(3,),
    weights=(0.7, (0.5, 0.4)),
)


def test_the_examples_hold() -> None:
    assert doctest.testmod(sweeping) == (0, 1)


def test_a_grid_gives_each_merge_once() -> None:
    found = candidates(GRID)
    choosing = [name for name in GRIDDED if methods.get(name).chooses]
    # Three choices with two weightings for the methods that choose; the others have no choice of layers.
    assert len(found) == 6 * len(choosing) + 2 * (len(GRIDDED) - len(choosing))
    assert found["exact_q0.5_w0.7_0.3"] == MergeOptions(quantile=0.5, task_weight=0.7)
    assert found["scale_w0.5"].method == "scale"
    assert found["peft_dare_linear_n3_w0.5_0.4_d0.5"].density == 0.5
    assert len(set(found.values())) == len(found)


def test_a_grid_of_nothing_is_half_of_the_layers_with_the_methods_own_weights() -> None:
    assert candidates(SweepGrid()) == {"exact_q0.5_w0.8_0.2": MergeOptions(quantile=0.5)}


def _deltas(folder: Path) -> dict[str, torch.Tensor]:
    return {module: pair.delta(torch.float64) for module, pair in read_adapter(folder).pairs.items()}


def _check(candidate, written: Path, files) -> None:
    merged, task, safety = (_deltas(folder) for folder in (written, files.task, files.safety))
    together = {
        name: torch.cat([deltas[module].flatten() for module in task])
        for name, deltas in (("merged", merged), ("task", task), ("safety", safety))
    }
    change = float((together["merged"] - together["task"]).norm() / together["task"].norm())
    # Written in fp32, weighed with fewer roundings; of 0, the root of float64's resolution is left.
    assert candidate.change == pytest.approx(change, rel=1e-5, abs=1e-6)
    cosine = torch.nn.functional.cosine_similarity(together["merged"], together["safety"], dim=0)
    assert candidate.safety_cosine == pytest.approx(float(cosine), abs=1e-6)
    report = json.loads((written / "safemerge_report.json").read_text())
    assert candidate.layers_merged == sum(layer["merged"] for layer in report["layers"])
    assert candidate.threshold == report["threshold"]
    assert candidate.options == report["options"]
    assert candidate.rank == max(pair.rank for pair in read_adapter(written).pairs.values())


@pytest.mark.parametrize("size", [{}, {"rank": 2}, {"max_error": 0.3}], ids=str)
def test_figures_are_those_of_the_adapters_that_are_written(merge_files, tmp_path: Path, size) -> None:
    told = []
    report = sweep_adapters(
        *merge_files,
        candidates=candidates(GRID.model_copy(update=size)),
        output=tmp_path / "sweep",
        write=["all"],
        progress=lambda *state: told.append(state),
    )
    assert len(told) == 4  # layers, once, whatever the number of candidates
    for candidate in report.candidates:
        written = tmp_path / "sweep" / candidate.name
        assert candidate.output == candidate.name
        _check(candidate, written, merge_files)
        errors = [
            layer["error"] for layer in json.loads((written / "safemerge_report.json").read_text())["layers"]
        ]
        assert candidate.error == pytest.approx(max(error or 0 for error in errors), abs=1e-6)  # fp32


def test_a_method_that_builds_updates_in_full_is_weighed_too(
    merge_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = methods.get("exact")

    def dense(layer, options, generator):
        return exact.merge(layer, options, generator).delta()

    monkeypatch.setattr("safemerge.core.methods.exact.METHOD", methods.get("exact").__class__(dense))
    report = sweep_adapters(
        *merge_files, candidates=candidates(SweepGrid()), output=tmp_path / "sweep", write=["all"]
    )
    (candidate,) = report.candidates
    _check(candidate, tmp_path / "sweep" / candidate.name, merge_files)
    assert candidate.error == pytest.approx(0, abs=1e-6)  # the sum of two updates of rank r has rank 2r


def test_only_the_chosen_are_written_beside_report_and_page(merge_files, tmp_path: Path) -> None:
    found = candidates(SweepGrid(quantiles=(0.25, 0.5)))
    output = tmp_path / "sweep"
    report = sweep_adapters(*merge_files, candidates=found, output=output, write=["exact_q0.5_w0.8_0.2"])
    assert {path.name for path in output.iterdir()} == {
        "exact_q0.5_w0.8_0.2",
        "safemerge_sweep.html",
        "safemerge_sweep.json",
    }
    assert SweepReport.read(output / "safemerge_sweep.json") == report
    assert [candidate.output for candidate in report.candidates] == [None, "exact_q0.5_w0.8_0.2"]
    alone = merge_adapters(*merge_files, output=tmp_path / "alone", quantile=0.5)
    for name in ("adapter_model.safetensors", "safemerge_report.json"):
        written = output / "exact_q0.5_w0.8_0.2" / name
        assert written.read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert alone.digests == report.digests


def test_without_an_output_nothing_is_written(merge_files, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    report = sweep_adapters(
        merge_files.task, None, merge_files.aligned, merge_files.unaligned,
        candidates=candidates(SweepGrid(methods=("scale",), weights=(0.5,))),
    )  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before
    (candidate,) = report.candidates
    assert candidate.change == pytest.approx(0.5, rel=1e-6)
    assert candidate.safety_cosine is None
    assert candidate.rank == 3


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"candidates": {}}, "expected at least one candidate"),
        ({"candidates": {"a/b": MergeOptions()}}, "expected plain names, got 'a/b'"),
        ({"write": ["best"]}, r"write: expected all or candidates \(one\), got best"),
        ({"write": ["one"], "output": None}, "expected an output folder to write one to, got none"),
    ],
)
def test_what_cannot_be_written_is_said_first(merge_files, tmp_path: Path, settings, match: str) -> None:
    given = {"candidates": {"one": MergeOptions()}, "output": tmp_path / "sweep"} | settings
    with pytest.raises(ConfigError, match=match):
        sweep_adapters(*merge_files, **given)
    assert not (tmp_path / "sweep").exists()


def test_an_output_that_exists_is_refused(merge_files, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError):
        sweep_adapters(*merge_files, candidates={"one": MergeOptions()}, output=tmp_path)
