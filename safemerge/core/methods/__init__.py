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
FOLDER = Path(__file__).parent


@functools.cache
def names() -> tuple[str, ...]:
    """The methods' names, in alphabetical order."""
    return tuple(sorted({file.stem for file in FOLDER.glob("*.py")} - {"__init__", "base"}))


@functools.cache
def summaries() -> dict[str, str]:
    """Name of every method to the first line of its docstring; reads every file."""
    texts = {name: (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in names()}
    return {
        name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0] for name, text in texts.items()
    }


def get(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        ConfigError: there is none; all are named.
    """
    if name not in names():
        raise ConfigError(f"method: expected one of {', '.join(names())}, got {name!r}")
    method: MergeMethod = importlib.import_module(f"{__name__}.{name}").METHOD
    return method
