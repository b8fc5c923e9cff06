"""The benchmarks' modules, for tests of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@contextmanager
def benchmarks(*names: str) -> Iterator[list[ModuleType]]:
    """Import modules as the scripts among them do, and forget them and what they imported of each other."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield [import_module(name) for name in names]
    for name in {file.stem for file in BENCHMARKS.glob("*.py")} & sys.modules.keys() - before:
        del sys.modules[name]
