"""The demo's servers are found on this machine, whatever its environment says of others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from safemerge.demo.services import HOST, _answers, pass_by_proxies


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer((HOST, 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://{HOST}:{server.server_port}/health"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("before", "after"), [("", HOST), ("there,*.org", f"there,*.org,{HOST}"), ("*", "*")]
)
def test_a_proxy_is_passed_by(url: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nothing listens
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, before)
    assert _answers(url) == (before == "*")
    pass_by_proxies()
    pass_by_proxies()
    assert _answers(url)
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (after, after)
