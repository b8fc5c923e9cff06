"""The server is where one says, else where the environment says; what MLflow raises names it."""

from __future__ import annotations

import pytest

from safemerge.errors import ConfigError, TrackingError
from safemerge.tracking.server import tracking_address, tracking_errors


def test_the_address_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert (tracking_address(), tracking_address("http://here")) == ("http://there", "http://here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: expected the address .* got nothing"):
        tracking_address()


def test_mlflow_errors_name_the_server() -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(TrackingError, match="MLflow at http://there: no"), tracking_errors("http://there"):
        raise MlflowException("no")
    with pytest.raises(KeyError), tracking_errors("http://there"):
        raise KeyError


def test_mlflow_errors_tell_no_password() -> None:
    from mlflow.exceptions import MlflowException

    address = "https://me:sec@ret@there:5000"
    said = "MLflow at https://there:5000: API request to https://there:5000/api/a@b failed"
    with pytest.raises(TrackingError, match=f"^{said}$"), tracking_errors(address):
        raise MlflowException(f"API request to {address}/api/a@b failed")
