"""The server is where one says, else where the environment says; what MLflow raises names it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from safemerge.errors import ConfigError, TrackingError
from safemerge.tracking.server import check_reachable, tracking_address, tracking_errors


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


def test_a_server_that_does_not_listen_is_named_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but never listens
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        said = rf"^MLflow at http://{where} cannot be reached: \[Errno \d+\] Connection refused$"
        with pytest.raises(TrackingError, match=said):
            check_reachable(f"http://me:secret@{where}")


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safemerge.tracking.server._ANSWERS_WITHIN_S", 0.1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(TrackingError, match="cannot be reached: timed out"):
            check_reachable(f"http://127.0.0.1:{deaf.getsockname()[1]}")


def test_any_answer_of_a_server_will_do() -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the test asks."""

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.handle_request).start()
        check_reachable(f"http://127.0.0.1:{server.server_port}/")
    assert asked == ["/health"]
    check_reachable("sqlite:///no/such.db")
