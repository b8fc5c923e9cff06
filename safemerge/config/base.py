"""What all config models are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""A name that fits into file names, metric names and web addresses as it is."""


class Config(BaseModel):
    """Base of all config models: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
