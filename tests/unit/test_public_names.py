"""The package's public names: loaded on first use, so that importing the package stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import safemerge


def test_public_names_are_there():
    assert {name for name in safemerge.__all__ if not callable(getattr(safemerge, name))} == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'safemerge' has no attribute 'merge_all'"):
        _ = safemerge.merge_all


@pytest.mark.parametrize(
    "module",
    ["safemerge", "safemerge.gate", "safemerge.config.load", "safemerge.records", "safemerge.errors"],
)
def test_importing_loads_no_heavy_library(module: str):
    program = (
        f"import sys, {module}\n"
        "print(sorted({'torch', 'transformers', 'mlflow', 'peft', 'scipy', 'airflow'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
