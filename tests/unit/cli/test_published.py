"""The published script's flags, translated."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from safemerge.cli.published import PublishedFlags, formula_notice, merge_arguments

FLAGS = PublishedFlags(
    base_model_id="base",
    finetuned_model_id="task",
    safety_model_id="safety",
    safelora_unaligned_model_id="unaligned",
    safelora_aligned_model_id="aligned",
)


def test_the_defaults_are_the_scripts() -> None:
    assert merge_arguments(FLAGS) == {
        "task_adapter": "task",
        "safety_adapter": "safety",
        "aligned_model": "aligned",
        "unaligned_model": "unaligned",
        "method": "peft_linear",
        "threshold": 0.35,
        "task_weight": 0.8,
        "safety_weight": 0.2,
        "on_undefined": "merge",
        "output": Path("safemerge_models/safemerge_linear_t0.35_w0.8_0.2"),
    }


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({"weighting": "[0.7, 0.3]"}, (0.7, 0.3)),
        ({"weighting": "(1, -0.5)"}, (1.0, -0.5)),
        ({"default_merge_ratio": 0.2}, (0.8, 0.2)),
        ({"default_merge_ratio": 0.3, "weighting": "[0.5, 0.5]"}, (0.7, 0.3)),
        ({"default_merge_ratio": 0.0}, (1.0, 0.0)),
    ],
)
def test_a_ratio_overrides_the_weighting(given: dict, weights: tuple[float, float]) -> None:
    arguments = merge_arguments(replace(FLAGS, **given))
    assert (arguments["task_weight"], arguments["safety_weight"]) == weights


def test_the_scripts_cosine_of_zero_gives_way_to_what_the_user_says() -> None:
    assert merge_arguments(FLAGS, "fail") == merge_arguments(FLAGS) | {"on_undefined": "fail"}
    assert merge_arguments(replace(FLAGS, cos_threshold=0.01))["on_undefined"] == "merge"
    assert merge_arguments(replace(FLAGS, cos_threshold=0.0))["on_undefined"] == "keep"


@pytest.mark.parametrize(
    "weighting", ["0.8", "[0.8]", "[1, 2, 3]", "[0.8, 'x']", "[nan, 1]", "[1e999, 1]", "[", "[None, 1]"]
)
def test_weightings_that_are_not_two_numbers_are_refused(weighting: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected two numbers") as caught:
        merge_arguments(replace(FLAGS, weighting=weighting))
    assert caught.value.param_hint == "--weighting"


def test_all_missing_flags_are_named_at_once() -> None:
    with pytest.raises(typer.BadParameter, match=r"--finetuned_model_id, --safelora_aligned_model_id$"):
        merge_arguments(replace(FLAGS, finetuned_model_id=None, safelora_aligned_model_id=None))


def test_the_base_model_is_not_needed() -> None:
    assert merge_arguments(replace(FLAGS, base_model_id=None)) == merge_arguments(FLAGS)


def test_ties_is_refused_and_says_what_the_script_does() -> None:
    with pytest.raises(typer.BadParameter, match=r"got 'ties' .*zeros"):
        merge_arguments(replace(FLAGS, merge_type="ties"))
    with pytest.raises(typer.BadParameter, match=r"expected linear or dare_linear, got 'cat'$"):
        merge_arguments(replace(FLAGS, merge_type="cat"))


@pytest.mark.parametrize("density", [None, 0.0, 1.5, -0.1])
def test_dare_linear_needs_a_density(density: float | None) -> None:
    with pytest.raises(typer.BadParameter, match=r"share in \(0, 1\]"):
        merge_arguments(replace(FLAGS, merge_type="dare_linear", density=density))


def test_dare_linear_takes_density_and_seed() -> None:
    arguments = merge_arguments(replace(FLAGS, merge_type="dare_linear", density=0.5, seed=3))
    assert (arguments["method"], arguments["density"], arguments["seed"]) == ("peft_dare_linear", 0.5, 3)
    assert arguments["output"].name == "safemerge_dare_linear_t0.35_w0.8_0.2_density0.5_seed3"


def test_linear_ignores_a_density_as_the_script_does() -> None:
    assert merge_arguments(replace(FLAGS, density=0.5)) == merge_arguments(FLAGS)


def test_a_new_folder_is_found_beside_those_of_earlier_runs(tmp_path: Path) -> None:
    flags = replace(FLAGS, output_path=str(tmp_path))
    names = []
    for _ in range(3):
        names.append(merge_arguments(flags)["output"].name)
        (tmp_path / names[-1]).mkdir()
    stem = "safemerge_linear_t0.35_w0.8_0.2"
    assert names == [stem, f"{stem}_2", f"{stem}_3"]


def test_the_notice_holds_the_command_for_the_formula() -> None:
    arguments = merge_arguments(replace(FLAGS, finetuned_model_id="my task", default_merge_ratio=0.3))
    *_, command = formula_notice(arguments).splitlines()
    assert shlex.split(command) == [
        "safemerge",
        "merge",
        *("--task-adapter", "my task"),
        *("--safety-adapter", "safety"),
        *("--aligned-model", "aligned"),
        *("--unaligned-model", "unaligned"),
        *("--threshold", "0.35"),
        *("--task-weight", "0.7"),
        *("--safety-weight", "0.3"),
        *("--on-undefined", "merge"),
        *("--output", "DIR"),
    ]
