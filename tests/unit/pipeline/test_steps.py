"""Requests that no step can serve are refused by name."""

from __future__ import annotations

import pytest

from safemerge.errors import ConfigError
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.steps import run_step


@pytest.mark.parametrize(
    ("name", "request_json", "message"),
    [
        ("evaluat", "{}", "expected one of open, train, .* got 'evaluat'; did you mean evaluate"),
        ("gate", "{", "step gate: expected a request as JSON, got at request"),
        ("gate", '{"inputs": {"adapter": {"uri": "x"}}}', r"got no key inputs\.adapter\.digest"),
        ("gate", '{"runid": "x"}', "got at runid"),
    ],
)
def test_bad_request(name: str, request_json: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_step(name, request_json)


def test_a_step_of_no_run_is_refused_as_nothing_that_another_try_mends() -> None:
    with pytest.raises(ConfigError, match=r"step request: expected run_id, .* got none"):
        _ = StepRequest().opened_run_id
