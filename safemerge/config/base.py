"""What all config models are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from safemerge.described import Described

PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""A name that fits into file names, metric names and web addresses as it is."""


class Config(Described):
    """Base of all config models: frozen, and no key that it does not know."""
