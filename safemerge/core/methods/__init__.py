"""Merge methods: each is a file of its name in this folder, and stands in no list.

A method's file holds one :class:`~safemerge.core.methods.base.MergeMethod` called ``METHOD``; the first
line of its docstring says in a few words what it does, the rest gives formula and source. This module
loads no torch, so that command line, configuration and DAG files can offer the names.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.errors import ConfigError

if TYPE_CHECKING:
    from safemerge.core.methods.base import MergeMethod

DEFAULT = "exact"


@functools.cache
def summaries() -> dict[str, str]:
    """Name of every method to the first line of its docstring, in alphabetical order."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        for file in files
        if file.stem not in ("__init__", "base")
    }


def names() -> tuple[str, ...]:
    """The methods' names."""
    return tuple(summaries())


def get(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        ConfigError: there is none; all are named.
    """
    if name not in summaries():
        raise ConfigError(f"method: expected one of {', '.join(names())}, got {name!r}")
    method: MergeMethod = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
