"""What all config models are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from safemerge.described import Described

PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
"""A name that fits into file names, metric names and web addresses as it is."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""``org/name`` or ``org/name@revision``; whatever else names a model is a path."""
DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""``org/name`` or ``name``; whatever else names a data set is a path."""
MLFLOW_ADDRESSES = ("models:/", "runs:/")
"""How addresses in MLflow begin."""


class Config(Described):
    """Base of all config models: frozen, and no key that it does not know."""
