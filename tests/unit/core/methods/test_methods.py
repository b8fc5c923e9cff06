"""The registry: every file is a whole method, offered and tested."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from safemerge.config.merge import MergeConfig
from safemerge.core import methods
from safemerge.core.layer_weights import LayerWeights
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


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_whether_it_is_a_weighed_sum(name: str, pair, merged, error_of):
    method, task, safety = methods.get(name), pair(0), pair(1)
    own = {"density": 0.5} if method.prunes else {"components": 2} if method.decomposes else {}
    if method.weighs_layers:
        own = {"coefficients": LayerWeights({"layer": (0.7, 0.2)})}
    else:
        own |= {"task_weight": 0.7, "safety_weight": 0.2}
    difference = pair(2, rank=5).delta()
    update = merged(name, task, safety, difference=difference, weights=(0.7, 0.2), **own)
    beta = 0.2 if method.weighs_safety else 0.0
    expected = 0.7 * task.delta(torch.float64) + beta * safety.delta(torch.float64)
    # Either one rounding of each factor to fp32, or another update altogether.
    assert (error_of(update, expected) < 1e-6) == method.weighed_sum


def test_names_are_found_without_reading_a_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("read a file"))
    methods.names.cache_clear()
    assert methods.names() == tuple(NAMES)


def test_an_unknown_method_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"method: expected one of dare_linear, .*, ties, got 'cat'"):
        methods.get("cat")
