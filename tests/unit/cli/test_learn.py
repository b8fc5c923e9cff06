"""Settings of a fit from flags of ``learn`` and ``tune``."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from safemerge.cli.learn import _progress, learning_config
from safemerge.config.learning import LearningConfig
from safemerge.errors import ConfigError


def test_flags_that_are_not_given_leave_the_defaults() -> None:
    assert learning_config({"harm_weights": None, "steps": 3}, None) == LearningConfig(steps=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"harm_weights": (1.0, float("inf"))}, "--harm-weight: expected a finite number, got inf"),
        ({"steps": 0}, "--steps: expected greater than 0, got 0"),
        (
            {"harm_weights": (1.0, 1.0 + 1e-9)},
            "--harm-weight: expected harm_weights that differ in six digits, got several 1",
        ),
    ],
)
def test_what_is_out_of_bounds_is_said_once_by_its_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        learning_config(given, None)
    assert str(raised.value) == message


def test_progress_counts_the_steps_of_all_fits_and_those_that_one_left_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safemerge.evaluation.progress.LINE_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    with _progress(LearningConfig(harm_weights=(3.0, 1.0), steps=4)) as (on_layer, on_step):
        on_layer(1, 2, "a")
        on_layer(2, 2, "b")
        assert not caplog.messages
        # The fit of the smaller λ comes first, and ends early.
        for harm_weight, step in ((1.0, 1), (1.0, 2), (3.0, 1), (3.0, 4)):
            on_step({"harm_weight": harm_weight}, step)
    said = [message.partition(": ")[2] for message in caplog.messages]
    assert [words.split(",")[0] for words in said[:3]] == ["1 of 8", "2 of 8", "5 of 8"]
    assert said[0].endswith(" s left")
    assert said[3].startswith("8 done in ")
