"""The MLflow server: where it is, and its errors as one of ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safemerge.errors import ConfigError, TrackingError

_ANSWERS_WITHIN_S = 10
"""How long a person waits to hear that no server answers, in seconds."""


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


def check_reachable(address: str) -> None:
    """Check by one short request that a server answers, before MLflow tries for minutes.

    For calls that a person waits for; a step of a pipeline keeps MLflow's patience.

    Args:
        address: the server's; a database or a folder is not asked.

    Raises:
        TrackingError: it gives no answer. Any answer will do, a refusal as well.
    """
    if not address.startswith(("http://", "https://")):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # By MLflow's own client, for its proxies and certificates.
        http_request(
            get_default_host_creds(address),
            "/health",
            "GET",
            max_retries=0,
            timeout=_ANSWERS_WITHIN_S,
            raise_on_status=False,
        )
    except MlflowException as error:
        raise TrackingError(f"MLflow at {address} cannot be reached: {_cause(error)}") from error


@contextmanager
def tracking_errors(address: str) -> Iterator[None]:
    """Whatever MLflow raises, as one error that names the server."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("mlflow."):
            raise
        raise TrackingError(f"MLflow at {address}: {error}") from error


def _cause(error: BaseException) -> BaseException:
    """What an error goes back to, such as *Connection refused*."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
