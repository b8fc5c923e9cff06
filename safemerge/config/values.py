"""Values that several config models share: weights, shares, names of methods, what to do where undefined."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from safemerge.core import methods

Weight = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def _known_method(name: str) -> str:
    if name not in methods.names():
        raise ValueError(f"expected one of {', '.join(methods.names())}, got {name!r}")
    return name


Method = Annotated[
    str, AfterValidator(_known_method), WithJsonSchema({"type": "string", "enum": list(methods.names())})
]
"""Name of a merge method: a file in :mod:`safemerge.core.methods`."""


class OnUndefined(StrEnum):
    """What to do with a layer whose cosine is undefined."""

    KEEP = "keep"
    MERGE = "merge"
    FAIL = "fail"
