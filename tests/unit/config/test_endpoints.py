"""Settings of OpenAI-compatible servers: what cannot be meant is refused."""

import pytest

from safemerge.config.endpoints import EndpointConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": {"a": "x", "b": "x"}}, "expected a name for each arm, got one for several: x"),
        ({"models": {}}, "at least 1 item"),
        ({"request": {"temperature": 1}}, "expected keys of the server's own in request, got temperature"),
        ({"url": "ftp://h"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        EndpointConfig.model_validate({"url": "http://h/v1", "models": {"a": "x"}} | given)
