"""The registry: every file is a whole method, offered and tested."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from safemerge.config.merge import MergeConfig
from safemerge.core import methods
from safemerge.core.methods.base import MergeMethod
from safemerge.errors import ConfigError

FOLDER = Path(methods.__file__).parent
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "base"))


def test_every_file_is_a_method():
    assert methods.names() == tuple(NAMES)
    assert {"exact", "ties", "dare_linear", "safelora", "lox"} <= set(NAMES)
    assert methods.DEFAULT in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_whole(name: str):
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    assert isinstance(methods.get(name), MergeMethod)
    assert methods.summaries()[name] == docstring.partition("\n")[0]
    assert 20 < len(methods.summaries()[name]) < 105
    assert methods.summaries()[name].endswith(".")
    assert "Source:" in docstring or name.startswith("scale"), "controls alone have no source"
    assert MergeConfig(method=name).method == name
    assert (Path(__file__).parent / f"test_{name}.py").exists()


def test_an_unknown_method_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"method: expected one of dare_linear, .*, ties, got 'cat'"):
        methods.get("cat")
