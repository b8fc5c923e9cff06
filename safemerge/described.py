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
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema


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
