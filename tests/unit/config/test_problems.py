"""Values that are wrong are told as what was expected and what was got."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from safemerge.config.problems import problem, shown

Share = Annotated[float, Field(ge=0, le=1)]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Share, 30, "expected less than or equal to 1, got 30; as a share, 30 % is 0.3"),
        (Share, "2.5", "expected less than or equal to 1, got '2.5'; as a share, 2.5 % is 0.025"),
        (
            Annotated[float, Field(gt=0, lt=1)],
            5,
            "expected less than 1, got 5; as a share, 5 % is 0.05",
        ),
        (Share | dict[str, Share], "x", "expected a valid number or a valid dictionary, got 'x'"),
        (Share, 101, "expected less than or equal to 1, got 101"),
        (Share, -1, "expected greater than or equal to 0, got -1"),
        (Annotated[float, Field(le=0.05)], 5, "expected less than or equal to 0.05, got 5"),
        (int, "x", "expected a valid integer, got 'x'"),
    ],
)
def test_a_wrong_value(kind: Any, value: object, said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(kind).validate_python(value)
    assert problem(raised.value.errors()) == said


def test_a_long_value_is_cut() -> None:
    assert shown("a" * 58) == repr("a" * 58)
    assert shown("a" * 59) == "'" + "a" * 58 + "…"
