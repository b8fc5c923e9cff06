"""The MLflow server: where it is, and its errors as one of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safemerge.errors import ConfigError, TrackingError


def tracking_address(given: str | None = None) -> str:
    """The server's address: the one given, else that of ``MLFLOW_TRACKING_URI``.

    Raises:
        ConfigError: there is neither. MLflow would make a database in the working directory, another on every
            worker.
    """
    address = given or os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise ConfigError("MLFLOW_TRACKING_URI: expected the address of the MLflow server, got nothing")
    return address


@contextmanager
def tracking_errors(address: str) -> Iterator[None]:
    """Whatever MLflow raises, as one error that names the server."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("mlflow."):
            raise
        raise TrackingError(f"MLflow at {address}: {error}") from error
