"""Options of a merge: defaults, weights, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.core.layer_weights import LayerWeights
from safemerge.core.options import MergeOptions, MergeSettings, with_partners_cleared
from safemerge.errors import ConfigError

OF_ONE_LAYER = LayerWeights({"a": (0.7, 0.3)})


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, (0.8, 0.19999999999999996)),
        ({"task_weight": 0.75}, (0.75, 0.25)),
        ({"safety_weight": 0.25}, (0.75, 0.25)),
        ({"task_weight": 1.0, "safety_weight": 0.5}, (1.0, 0.5)),
        ({"task_weight": 0.0}, (0.0, 1.0)),
        ({"method": "resta"}, (1.0, 0.5)),  # two strengths of their own
        ({"method": "resta", "task_weight": 0.9}, (0.9, 0.5)),
        ({"method": "resta", "safety_weight": 0.3}, (1.0, 0.3)),
    ],
)
def test_one_weight_given_makes_the_other_one_minus_it(given: dict[str, float], weights: tuple[float, float]):
    assert MergeOptions(**given).weights == weights


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "cat"}, "method: expected one of .*, exact, .*, got 'cat'"),
        ({"on_undefined": "drop"}, "on_undefined: expected one of keep, merge, fail, got 'drop'"),
        ({"threshold": float("nan")}, "threshold: expected a finite number, got nan"),
        ({"task_weight": float("inf")}, "task_weight: expected a finite number, got inf"),
        ({"safety_weight": float("nan")}, "safety_weight: expected a finite number, got nan"),
        (
            {"threshold": 0.3, "quantile": 0.5},
            "expected one of threshold, quantile, count, modules, got threshold",
        ),
        ({"quantile": 1.5}, r"quantile: expected a share in \[0, 1\], got 1.5"),
        ({"quantile": -0.1}, r"quantile: expected a share in \[0, 1\], got -0.1"),
        ({"method": "peft_dare_linear"}, "density: expected with method peft_dare_linear, got none"),
        ({"density": 0.5}, "density: expected with methods that prune .*, got 0.5 with exact"),
        (
            {"components": 6},
            r"components: expected with methods that decompose V alone \(lox, lssf\), got 6 with exact",
        ),
        ({"method": "lox"}, "components: expected with method lox, got none"),
        ({"method": "lssf", "components": 0}, "components: expected at least 1, got 0"),
        ({"rank": 8, "max_error": 0.1}, "expected one of rank, max_error, got rank and max_error"),
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"max_error": 1.0}, r"max_error: expected a relative error in \[0, 1\), got 1.0"),
        ({"max_error": -0.1}, r"max_error: expected a relative error in \[0, 1\), got -0.1"),
        ({"count": -1}, "count: expected a number of layers, got -1"),
        ({"modules": ()}, "modules: expected at least one path or pattern, got none"),
        ({"method": "peft_dare_linear", "density": 0.0}, r"density: expected a share in \(0, 1\], got 0.0"),
        ({"method": "learned"}, "coefficients: expected with method learned, got none"),
        (
            {"method": "ties", "density": 0.5, "coefficients": OF_ONE_LAYER},
            "expected coefficients alone, .* got density beside them",
        ),
        (
            {"method": "scale", "coefficients": OF_ONE_LAYER},
            r"expected with methods that weigh each layer alone \(learned\), got them with scale",
        ),
        (
            {"quantile": 0.5, "task_weight": 0.7, "coefficients": OF_ONE_LAYER},
            "expected coefficients alone, .* got quantile and task_weight",
        ),
        ({"method": "peft_dare_linear", "density": 1.5}, r"density: expected a share in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_options_are_refused_by_name(given: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        MergeOptions(**given)


def test_coefficients_bring_their_method_and_their_means() -> None:
    options = MergeOptions(coefficients=LayerWeights({"a": (0.5, 0.25), "b": (1.0, 0.75)}))
    assert (options.method, options.weights) == ("learned", (0.75, 0.5))
    assert hash(options) == hash(MergeOptions(coefficients=options.coefficients))


def test_coefficients_stand_for_all_else_that_a_file_says_of_a_merge_and_give_way_to_it() -> None:
    cleared = with_partners_cleared({"coefficients": "file.json"})
    assert cleared.pop("coefficients") == "file.json"
    assert cleared.pop("method") == "learned"
    assert set(cleared) == {
        *("threshold", "quantile", "count", "modules", "task_weight", "safety_weight"),
        *("density", "components"),
    }
    assert set(cleared.values()) == {None}
    assert with_partners_cleared({"safety_weight": 0.3})["coefficients"] is None
    assert with_partners_cleared({"rank": 8}) == {"rank": 8, "max_error": None}


def test_settings_are_the_fields_of_the_options() -> None:
    assert tuple(MergeSettings.__annotations__) == tuple(MergeOptions.__dataclass_fields__)


def test_patterns_of_modules_are_kept_as_a_tuple_whatever_came() -> None:
    assert MergeOptions(modules=["*.q_proj"]) == MergeOptions(modules=("*.q_proj",))
    assert hash(MergeOptions(modules=["*.q_proj"])) == hash(MergeOptions(modules=("*.q_proj",)))
