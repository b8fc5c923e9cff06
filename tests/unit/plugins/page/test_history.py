from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx
import pytest

from safemerge_airflow.page import history, mlflow_api
from safemerge_airflow.page.history import Cache, History
from safemerge_airflow.page.mlflow_api import MlflowApi, MlflowUnavailableError, connect
from tests.unit.plugins.page.conftest import Mlflow
from tests.unit.plugins.page.fill import config, open_run, promote


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_newest_runs_come_at_once_and_older_ones_soon(
    mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NEWEST": 2, "BATCH": 2, "MOST": 6}.items():
        monkeypatch.setattr(history, name, value)
    ids = [open_run(mlflow.ledger, config("alpha"), f"dag/{number}").run_id for number in range(7)]
    read, go = mlflow.history(), threading.Event()
    read_older = read._read_older
    # Not before the first answer, as it could be on a machine where another thread goes first.
    monkeypatch.setattr(read, "_read_older", lambda token: (go.wait(60), read_older(token)))
    assert {run.run_id for run in read.recent_runs()} == set(ids[-2:])
    go.set()
    wait_for(lambda: read.is_complete)
    assert [run.run_id for run in read.recent_runs()] == ids[:0:-1]  # all but the first: six at most


def test_runs_that_fit_one_answer_are_complete(mlflow: Mlflow) -> None:
    read = mlflow.history()
    run_id = open_run(mlflow.ledger, config("alpha"), "dag/1").run_id
    assert [run.run_id for run in read.recent_runs()] == [run_id]
    assert read.is_complete


def test_champions_are_those_of_all_models(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_api, "MODELS_AT_ONCE", 2)
    run_id = open_run(mlflow.ledger, config("alpha"), "dag/1").run_id
    names = [f"{letter}-lora" for letter in "abcde"]
    for name in names:
        promote(mlflow.ledger, name, run_id)
    assert mlflow.history().champions() == dict.fromkeys(names, "1")


def test_a_model_without_champion_or_not_there_has_none(mlflow: Mlflow) -> None:
    client = mlflow.ledger.client
    client.create_registered_model("alpha-lora")
    read = mlflow.history()
    assert (read.champion("alpha-lora"), read.champion("beta-lora"), read.champions()) == (None, None, {})
    run_id = open_run(mlflow.ledger, config("alpha"), "dag/1").run_id
    version = promote(mlflow.ledger, "alpha-lora", run_id)
    read = mlflow.history()
    assert (read.champion("alpha-lora"), read.champions()) == (version, {"alpha-lora": version})


def test_an_answer_is_given_again_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(history.time, "monotonic", lambda: now_s)
    answers = iter(range(10))
    cache = Cache()
    assert [cache.get("a", 5, lambda: next(answers)) for _ in range(3)] == [0, 0, 0]
    assert cache.get("b", 5, lambda: next(answers)) == 1
    now_s = 5.1
    assert cache.get("a", 5, lambda: next(answers)) == 2


def test_a_failure_is_repeated_for_a_second_so_that_not_every_visitor_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(history.time, "monotonic", lambda: now_s)
    cache, asked = Cache(), []

    def fail() -> None:
        asked.append(1)
        raise MlflowUnavailableError("away")

    for _ in range(3):
        with pytest.raises(MlflowUnavailableError, match="away"):
            cache.get("a", 5, fail)
    assert len(asked) == 1
    now_s = 1.1
    assert cache.get("a", 5, lambda: "back") == "back"


def test_visitors_at_the_same_time_ask_once() -> None:
    cache, asked, go = Cache(), [], threading.Event()

    def fetch() -> int:
        asked.append(1)
        go.wait(60)
        return 7

    got: list[int] = []
    visitors = [threading.Thread(target=lambda: got.append(cache.get("a", 5, fetch))) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    go.set()
    for visitor in visitors:
        visitor.join()
    assert (got, len(asked)) == ([7] * 4, 1)


def test_old_answers_do_not_pile_up() -> None:
    cache = Cache()
    for number in range(1200):
        cache.get(number, -1, lambda: 0)
    assert len(cache._answers) <= 501


def answering(answer: httpx.Response) -> MlflowApi:
    transport = httpx.MockTransport(lambda request: answer)
    return MlflowApi({"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, transport)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(401), "refuses this page .status 401.*MLFLOW_TRACKING_USERNAME"),
        (httpx.Response(403), "allowed-hosts"),
        (httpx.Response(500), "answered with status 500 to /api/2.0/mlflow/experiments/search"),
        (httpx.Response(200, html="<p>hello</p>"), "is not MLflow: expected an object .* got text/html"),
        (httpx.Response(200, json=[]), "is not MLflow: expected an object in JSON .* got application/json"),
    ],
)
def test_what_is_wrong_with_mlflow_is_said(answer: httpx.Response, said: str) -> None:
    with pytest.raises(MlflowUnavailableError, match=said):
        History(lambda: answering(answer)).recent_runs()


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "Basic dTpw"),
        ({"MLFLOW_TRACKING_URI": "http://u:p@mlflow:5000"}, "Basic dTpw"),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({}, None),
    ],
)
def test_login_is_that_of_mlflows_clients(settings: dict[str, str], sent: str | None) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    address = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    MlflowApi(address | settings, httpx.MockTransport(answer)).search_experiments()
    assert seen[0].headers.get("authorization") == sent


def test_a_connection_says_where_mlflow_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__MLFLOW_CONN_ID", "ledger")
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", "mlflow://user:password@mlflow.example:5000")
    assert connect().address == "https://mlflow.example:5000"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", '{"conn_type": "mlflow"}')
    with pytest.raises(MlflowUnavailableError, match=r"mlflow_conn_id is 'ledger': .*expected a host"):
        connect()
