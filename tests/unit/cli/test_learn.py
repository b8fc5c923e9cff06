"""Settings of a fit from flags of ``learn`` and ``tune``."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.cli.learn import learning_config
from safemerge.config.learning import LearningConfig
from safemerge.errors import ConfigError


def test_flags_that_are_not_given_leave_the_defaults() -> None:
    assert learning_config({"harm_weights": None, "steps": 3}) == LearningConfig(steps=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"harm_weights": (1.0, float("inf"))}, "--harm-weight: Input should be a finite number, got inf"),
        ({"steps": 0}, "--steps: Input should be greater than 0, got 0"),
    ],
)
def test_what_is_out_of_bounds_is_said_once_by_its_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        learning_config(given)
    assert str(raised.value) == message
