"""The optional libraries that an evaluation needs: are they there, and which versions."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from safemerge.config.evaluation import Engine
from safemerge.errors import MissingDependencyError

OPTIONAL = ("transformers", "peft", "lm_eval")
"""Libraries of the extra ``evaluation``, in the order of their use."""

OF_ENDPOINT = ("aiohttp", "requests", "tenacity")
"""What lm-eval asks servers by."""


def check_libraries(engine: Engine = Engine.TRANSFORMERS) -> None:
    """Check that an evaluation can run here, without loading anything.

    Raises:
        MissingDependencyError: a library is not installed.
    """
    for library in OPTIONAL:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(library, "evaluation")
    if engine is Engine.VLLM and importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError("vllm", "vllm")
    for library in OF_ENDPOINT if engine is Engine.ENDPOINT else ():
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(library, "endpoint")


def versions(engine: Engine = Engine.TRANSFORMERS) -> dict[str, str]:
    """Library to installed version, for the report."""
    return {name: metadata.version(name) for name in ("torch", *libraries_of(engine))}


def libraries_of(engine: Engine) -> tuple[str, ...]:
    """Libraries whose version may move the figures."""
    if engine is Engine.ENDPOINT:
        return tuple(name for name in OPTIONAL if name != "peft")  # adapters are put on by the server
    return (*OPTIONAL, "vllm") if engine is Engine.VLLM else OPTIONAL
