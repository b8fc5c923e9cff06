"""Config models: the merge's mirrors the options of the core, field by field."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import ValidationError

from safemerge.config.models import MergeConfig
from safemerge.engine.merging import merge_options


def test_a_merge_can_be_configured_with_every_option():
    config = MergeConfig(method="lssf", modules=("a",), components=3, rank=2, seed=5, on_undefined="fail")
    options = merge_options(config)
    assert set(MergeConfig.model_fields) == {field.name for field in dataclasses.fields(options)}
    expected = {name: getattr(config, name) for name in MergeConfig.model_fields}
    assert dataclasses.asdict(options) == expected


def test_defaults_are_those_of_the_core():
    options = merge_options(MergeConfig())
    assert options == type(options)()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0}, "greater than 0"),
        ({"density": 1.1}, "less than or equal to 1"),
        ({"components": 0}, "greater than 0"),
        ({"rank": 0}, "greater than 0"),
        ({"max_error": 1.0}, "less than 1"),
        ({"count": -1}, "greater than or equal to 0"),
        ({"modules": ()}, "at least 1 item"),
        ({"rank": 4, "max_error": 0.1}, "expected one of rank, max_error, got rank and max_error"),
        ({"count": 4, "modules": ("a",)}, "expected one of threshold, .*, got count and modules"),
        ({"method": "cat"}, "expected one of .*, ties, got 'cat'"),
    ],
)
def test_values_out_of_bounds_are_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        MergeConfig(**given)
