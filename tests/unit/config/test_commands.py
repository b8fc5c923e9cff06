"""Commands: what a file says, what flags override, and that the committed examples hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from safemerge.config.commands import MergeFileConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.load import (
    load_merge_file,
    load_policy,
    load_sweep_file,
    sweep_of_flags,
)
from safemerge.config.schemas import json_schema
from safemerge.core.options import with_partners_cleared
from safemerge.engine.merging import merge_options
from safemerge.engine.sweeping import candidates
from safemerge.errors import ConfigError

EXAMPLES = Path(__file__).parents[3] / "examples"
INPUTS = (
    "task_adapter: ./task\nsafety_adapter: org/safety@v1\naligned_model: aligned\nunaligned_model: org/m\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "aligned").mkdir()
    return tmp_path


def _write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(INPUTS + text)
    return path


def test_every_example_can_be_used() -> None:
    merge_options(load_merge_file(EXAMPLES / "merge.yaml").merge)
    load_policy(EXAMPLES / "policy.yaml")
    settings = load_sweep_file(EXAMPLES / "sweep.yaml")
    assert set(settings.write) <= candidates(settings.grid).keys()


def test_paths_count_from_the_file_and_hub_ids_stay(folder: Path) -> None:
    settings = load_merge_file(_write(folder, "output: out\nmerge: {quantile: 0.5}\n"))
    assert settings.task_adapter == str(folder / "task")
    assert settings.safety_adapter == "org/safety@v1"
    assert settings.aligned_model == str(folder / "aligned")
    assert settings.unaligned_model == "org/m"
    assert settings.output == str(folder / "out")
    assert settings.merge.quantile == 0.5


def test_overrides_win_and_count_from_where_they_were_typed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(folder, "output: out\nmerge: {quantile: 0.5}\n")
    typed_in = folder / "elsewhere"
    for name in ("org/m", "org/typed"):
        (typed_in / name).mkdir(parents=True)
    monkeypatch.chdir(typed_in)
    given = {"task_adapter": "./mine", "output": "o", "merge.quantile": None, "merge.count": 3}
    settings = load_merge_file(path, given | {"safety_adapter": "org/typed", "aligned_model": "org/other"})
    assert (settings.task_adapter, settings.output) == (f"{typed_in}/mine", "o")
    assert (settings.safety_adapter, settings.aligned_model) == (f"{typed_in}/org/typed", "org/other")
    assert settings.unaligned_model == "org/m"
    assert (settings.merge.quantile, settings.merge.count) == (None, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "output: o\nmerge: {quantil: 0.5}\n",
            r"line 6, merge.quantil: unknown key; did you mean quantile\?",
        ),
        ("", "output: expected a value, got nothing"),
        ("output: o\nmerge: {method: exat}\n", "merge.method: expected one of"),
        (
            "output: o\nmerge: {coefficients: c.json, quantile: 0.5, task_weight: 0.7}\n",
            "expected coefficients alone.*, got quantile and task_weight beside them",
        ),
        ("output: o\nmerge: {coefficients: 3}\n", "merge.coefficients: expected a valid string, got 3"),
        ("output: o\ngrid: {coefficients: [3]}\n", "grid: unknown key"),
        (
            "output: o\nmerge: {count: 1, quantile: 0.5}\n",
            "expected one of threshold, quantile, count, modules",
        ),
    ],
)
def test_what_is_wrong_is_said_in_its_place(folder: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_merge_file(_write(folder, text))


def test_a_sweep_is_read_with_its_grid(folder: Path) -> None:
    text = "grid:\n  thresholds: [0.2]\n  counts: [2, 3]\n  weights: [0.8, [0.5, 0.4]]\nwrite: [all]\n"
    settings = load_sweep_file(_write(folder, text))
    assert settings.grid.choices() == [{"threshold": 0.2}, {"count": 2}, {"count": 3}]
    assert settings.grid.weightings() == [{"task_weight": 0.8}, {"task_weight": 0.5, "safety_weight": 0.4}]
    assert len(settings.grid.points()) == 6
    assert settings.output is None


def test_files_of_coefficients_lie_beside_the_recipe_and_those_of_flags_where_they_were_typed(
    folder: Path,
) -> None:
    sweep = _write(folder, "grid: {coefficients: [a.json, ../b.json]}\n")
    assert load_sweep_file(sweep).grid.coefficients == (f"{folder}/a.json", f"{folder.parent}/b.json")
    assert load_sweep_file(sweep, {"grid.coefficients": ["c.json"]}).grid.coefficients == ("c.json",)
    merge = _write(folder, "output: o\nmerge: {coefficients: a.json, rank: 8}\n")
    read = load_merge_file(merge).merge
    assert (read.coefficients, read.method) == (f"{folder}/a.json", "learned")
    back = with_partners_cleared({"quantile": 0.5})
    back_to = load_merge_file(merge, {f"merge.{name}": value for name, value in back.items()}).merge
    assert (back_to.coefficients, back_to.method, back_to.quantile) == (None, "exact", 0.5)
    other = _write(folder, "output: o\nmerge: {method: ties, density: 0.5, count: 3}\n")
    given = with_partners_cleared({"coefficients": "c.json"})
    over = load_merge_file(other, {f"merge.{name}": value for name, value in given.items()}).merge
    assert (over.coefficients, over.method, over.count, over.density) == ("c.json", "learned", None, None)


def test_a_sweep_of_flags_alone() -> None:
    given = {"task_adapter": "a", "aligned_model": "b", "unaligned_model": "c", "grid.counts": [2]}
    assert sweep_of_flags(given).grid == SweepGrid(counts=(2,))
    with pytest.raises(ConfigError, match=r"grid\.quantiles\.0: expected less than or equal to 1"):
        sweep_of_flags(given | {"grid.quantiles": [2]})


def test_a_sweep_takes_one_size(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of rank, max_error"):
        load_sweep_file(_write(folder, "grid: {rank: 4, max_error: 0.1}\n"))


@pytest.mark.parametrize("kind", ["merge", "sweep"])
def test_schemas_are_json_that_explains_its_keys(kind: str) -> None:
    made = json.loads(json.dumps(json_schema(kind)))
    assert made["properties"]["task_adapter"]["description"] == "LoRA adapter fine-tuned on the task."
    assert "exact" in json.dumps(made["$defs"])


def test_the_recipe_holds_the_merge_of_the_pipeline() -> None:
    """A section can be copied from one file to the other."""
    text = yaml.safe_load((EXAMPLES / "merge.yaml").read_text())
    assert MergeFileConfig.model_validate(text).merge.rank == 16
