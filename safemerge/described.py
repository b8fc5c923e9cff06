"""What configs, policies and records are made of.

A field is explained by the text below it, and the JSON Schema says so. pydantic would read these texts
while a class is made (``use_attribute_docstrings``), from the sources, which every process that parses a DAG
file would pay for; here they are read when a schema is asked for.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, JsonValue, ValidationError
from pydantic_core import CoreSchema

from safemerge.errors import DataError

FORMAT_VERSION = 1
"""Version of the JSON layout of every record; raised on an incompatible change."""


class Described(BaseModel):
    """Frozen, and no key that it does not know."""

    # Most processes use a few of the models: each is built when it is first used.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The schema with the text below each field as its description."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for model in reversed(cls.__mro__):
            for name, text in _texts_of_module(model.__module__).get(model.__qualname__, {}).items():
                if name in properties:
                    properties[name]["description"] = text
        return schema


class Record(Described):
    """A frozen result with one JSON form."""

    def to_json(self) -> str:
        """The record as indented JSON, with a closing newline.

        Raises:
            DataError: it holds NaN or infinity, which JSON has no words for.
        """
        content = self.model_dump(mode="json")
        try:
            return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise DataError(
                f"{_called(type(self))}: expected finite numbers, got {', '.join(_not_finite(content))}"
            ) from error

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record from a JSON file.

        Raises:
            DataError: the file is missing, does not hold such a record, or one of a later format.
        """
        try:
            record = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{path}: expected {_called(cls)}, got no such file") from error
        except ValidationError as error:
            found = first_problem(error, "the file")
            raise DataError(f"{path}: expected {_called(cls)}, got {found}") from error
        version = getattr(record, "format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            raise DataError(
                f"{path}: expected {_called(cls)} of format {FORMAT_VERSION}, got format {version}, "
                "of a later version"
            )
        return record


def first_problem(error: ValidationError, whole: str) -> str:
    """Where the first fault of a record lies and what it is; ``whole`` names it where it has no one place."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    return f"no key {where}" if first["type"] == "missing" else f"at {where}: {first['msg']}"


def _not_finite(content: JsonValue, where: str = "") -> Iterator[str]:
    """Where plain data hold NaN or infinity, and which."""
    if isinstance(content, float) and not math.isfinite(content):
        yield f"{content} at {where}"
    elif isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _not_finite(value, f"{where}.{key}" if where else str(key))


def _called(kind: type[Record]) -> str:
    """A record's name in plain words, with its article."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
    return words if words.endswith("s") else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@functools.cache
def _texts_of_module(name: str) -> dict[str, dict[str, str]]:
    """Class to field to the text below it, for a module of ours."""
    if name.partition(".")[0] != __package__:
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    return {node.name: dict(_texts(node)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(node.body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(words))),
            ):
                yield name, inspect.cleandoc(words)
