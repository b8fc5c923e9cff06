"""Schemas for editors, and names of methods for shells."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from safemerge.cli.flags import complete_method
from safemerge.cli.schema import Kind
from safemerge.config.schemas import MODELS, json_schema
from safemerge.core import methods
from tests.unit.cli.calls import invoke


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_schema_prints_the_json_schema_of_every_kind_of_file(kind: str) -> None:
    assert json.loads(invoke("schema", kind).stdout) == json.loads(json.dumps(json_schema(kind)))


def test_the_kinds_offered_are_all_that_there_are() -> None:
    assert set(get_args(Kind)) == MODELS.keys()


def test_shells_complete_names_of_methods_with_what_they_do() -> None:
    assert [name for name, _ in complete_method("")] == list(methods.names())
    ((name, text),) = complete_method("exac")
    assert name == "exact"
    assert text == methods.summaries()["exact"]


def test_an_unknown_method_is_told_all_names_where_none_is_near() -> None:
    result = invoke("merge", "--method", "zzz", width=400)
    assert result.exit_code == 2
    assert f"expected one of {', '.join(methods.names())}" in result.stderr
