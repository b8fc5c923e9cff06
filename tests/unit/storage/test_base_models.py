"""Doubts about the base model that an adapter names."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from safemerge.storage import base_models
from safemerge.storage.base_models import base_model_doubt


def test_the_examples_hold() -> None:
    assert doctest.testmod(base_models) == (0, 3)


@pytest.mark.parametrize(
    ("base", "aligned"),
    [
        (None, "org/model"),
        ("", "org/model"),
        ("org/Model", "org/model@v2"),
        ("org/model", "other/model"),  # a mirror, as far as names can tell
        ("/somewhere/model/", "/elsewhere/Model"),
        ("org/model", "/cache/models--org--model/snapshots/0a1b2c"),
    ],
)
def test_names_that_may_mean_one_model_raise_none(base: str | None, aligned: str) -> None:
    assert base_model_doubt("it", {"base_model_name_or_path": base}, aligned) is None


def test_a_link_counts_by_either_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "model")
    assert base_model_doubt("it", {"base_model_name_or_path": "org/model"}, tmp_path / "current") is None


def test_other_names_do() -> None:
    doubt = base_model_doubt("the task adapter", {"base_model_name_or_path": "org/a"}, Path("/models/b"))
    assert (
        doubt == "the task adapter names org/a as its base model, not /models/b: make sure that they are one"
    )
