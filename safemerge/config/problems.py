"""What pydantic finds wrong with a value, in the words of our other errors: *expected …, got …*."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails


def problem(details: Sequence[ErrorDetails]) -> str:
    """What was expected and what was got, where a value is wrong.

    Args:
        details: Of one value; there are several where it may be of one of several types.
    """
    first = details[0]
    expected = " or ".join(dict.fromkeys(_expectation(detail["msg"]) for detail in details))
    if first["type"] == "value_error":
        return f"expected {expected}"
    return f"expected {expected}, got {shown(first['input'])}{_share_hint(first)}"


def shown(value: Any) -> str:
    """A value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _expectation(message: str) -> str:
    """Pydantic's message without its beginning, so that it can follow the word *expected*."""
    message = message.replace("String should match pattern", "a text that matches")
    message = re.sub(r"^(Value error, expected|\w+ should (be|have)) ", "", message)
    return re.sub(r" after validation, not \d+|, unable to parse .*", "", message)


def _share_hint(detail: ErrorDetails) -> str:
    """What a percentage is as a share, where the value was to be at most 1."""
    bounds = detail.get("ctx", {})
    if 1 not in (bounds.get("le"), bounds.get("lt")):
        return ""
    number = float(detail["input"])
    return f"; as a share, {number:g} % is {number / 100:g}" if number <= 100 else ""
