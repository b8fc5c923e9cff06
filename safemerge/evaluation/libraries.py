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
        _check(library, "evaluation")
    if engine is Engine.VLLM:
        _check("vllm", "vllm")
    for library in OF_ENDPOINT if engine is Engine.ENDPOINT else ():
        _check(library, "endpoint")


def check_lm_eval() -> None:
    """Check that lm-eval is installed, without loading it.

    Raises:
        MissingDependencyError: it is not.
    """
    _check("lm_eval", "evaluation")


def _check(library: str, extra: str) -> None:
    if importlib.util.find_spec(library) is None:
        raise MissingDependencyError(library, extra)


def versions(engine: Engine = Engine.TRANSFORMERS) -> dict[str, str]:
    """Library to installed version, for the report."""
    return {name: metadata.version(name) for name in ("torch", *libraries_of(engine))}


def libraries_of(engine: Engine) -> tuple[str, ...]:
    """Libraries whose version may move the figures."""
    if engine is Engine.ENDPOINT:
        return tuple(name for name in OPTIONAL if name != "peft")  # adapters are put on by the server
    return (*OPTIONAL, "vllm") if engine is Engine.VLLM else OPTIONAL
