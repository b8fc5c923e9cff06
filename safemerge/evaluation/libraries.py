"""The optional libraries that an evaluation needs: are they there, and which versions."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from safemerge.errors import MissingDependencyError

OPTIONAL = ("transformers", "peft", "lm_eval")
"""Libraries of the extra ``evaluation``, in the order of their use."""


def check_libraries() -> None:
    """Check that an evaluation can run here, without loading anything.

    Raises:
        MissingDependencyError: a library is not installed.
    """
    for library in OPTIONAL:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(library, "evaluation")


def versions() -> dict[str, str]:
    """Library to installed version, for the report."""
    return {name: metadata.version(name) for name in ("torch", *OPTIONAL)}
