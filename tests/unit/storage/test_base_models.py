"""Doubts about the base model that an adapter names."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from safemerge.errors import MismatchError
from safemerge.storage import base_models
from safemerge.storage.base_models import base_model_doubt, check_same_base


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


def _check(task: str | None, safety: str | None, aligned: str) -> tuple[str, ...]:
    bases = {"task adapter": task, "safety adapter": safety}
    return check_same_base({role: {"base_model_name_or_path": base} for role, base in bases.items()}, aligned)


@pytest.mark.parametrize(
    ("task", "safety", "aligned", "got"),
    [
        ("org/a", "org/b", "folder", r"org/a \(task adapter\), org/b \(safety adapter\); where"),
        ("org/a", "org/a", "org/b@main", r"org/a .*, org/b@main \(aligned model\); where"),
        (None, "org/a", "org/b", r"got org/a \(safety adapter\), org/b \(aligned model\)"),
    ],
)
def test_adapters_of_other_models_on_the_hub_are_refused(task, safety, aligned, got: str):
    with pytest.raises(MismatchError, match=got):
        _check(task, safety, aligned)


@pytest.mark.parametrize(
    ("task", "safety", "aligned"),
    [
        ("org/a", "Org/A", "org/a@v1"),
        ("org/a", None, "org/a"),
        ("org/a", "org/a", "/moved/a"),
        ("/gone/a", "/gone/a/", "org/a"),
        (None, "", "org/a"),
    ],
)
def test_names_of_one_model_are_no_matter(task, safety, aligned):
    assert _check(task, safety, aligned) == ()
    assert check_same_base({"adapter": {}}, Path(aligned)) == ()


def test_an_adapter_that_names_another_folder_is_worth_a_warning(tmp_path: Path, monkeypatch) -> None:
    for name in "abc":
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("models/a")
    monkeypatch.chdir(tmp_path)
    assert _check("models/a", str(tmp_path / "link"), "org/a") == ()
    (warning,) = _check("models/a", "models/b", "org/a")
    assert warning == (
        "the safety adapter names models/b as its base model, not org/a: make sure that they are one"
    )
    assert len(_check("models/b", "models/c", "org/a")) == 2
    assert _check("org/a", "/gone/a", "org/a") == ()
