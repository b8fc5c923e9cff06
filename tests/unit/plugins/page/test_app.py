"""The page's answers; logging in by tokens is tested with a real Airflow, in tests/e2e."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from airflow.api_fastapi.core_api.security import is_safe_url
from fastapi import FastAPI
from fastapi.testclient import TestClient

from safemerge.records import Verdict
from safemerge.tracking import tags
from safemerge_airflow.page import app as page
from safemerge_airflow.page import login_path
from safemerge_airflow.page.access import Readable
from safemerge_airflow.page.history import History
from safemerge_airflow.page.mlflow_api import MlflowApi
from safemerge_airflow.page.unopened import UnopenedRun
from tests.unit.plugins.page.conftest import Mlflow
from tests.unit.plugins.page.fill import (
    HOSTILE,
    HOSTILE_REPORT,
    REPORTS,
    config,
    evaluation,
    judged_run,
    open_run,
    promote,
    stopped_early,
)


def test_every_route_reads_and_is_closed(visit: Any) -> None:
    paths = [route.path.format(name="x", run_id="x") for route in page.app.routes]
    assert {method for route in page.app.routes for method in route.methods} == {"GET"}
    assert len(paths) == 6
    assert [TestClient(page.app).get(path).status_code for path in paths] == [401] * 6
    for path in paths:
        refused = visit(role=None).get(path)
        assert (refused.status_code, "<h1>Not permitted</h1>" in refused.text) == (403, True), path
        assert "Log in to Airflow" in refused.text
        assert visit(role="viewer").post(path).status_code == 405, path


@pytest.mark.parametrize("mount", ["", "/safemerge"])
@pytest.mark.parametrize(
    ("path", "back"),
    [
        ("/", "%2Fsafemerge%2F"),
        ("/runs/1", "%2Fsafemerge%2Fruns%2F1"),
        ("/runs/%22%3E%3Cimg%3E", "%2Fsafemerge%2Fruns%2F%2522%253E%253Cimg%253E"),
    ],
)
def test_who_is_not_logged_in_is_shown_the_way(path: str, back: str, mount: str) -> None:
    site = FastAPI()
    site.mount(mount, page.app)
    visitor = TestClient(site)
    answer = visitor.get(mount + path, headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert "<h1>Not logged in</h1>" in answer.text
    assert f'<a href="/api/v2/auth/login?next={back}">Log in to Airflow</a>' in answer.text
    assert "color-scheme: light dark" in answer.text
    assert "/page." not in answer.text  # those are behind the login, too
    assert "script-src" not in answer.headers["content-security-policy"]
    program = visitor.get(mount + path)
    assert (program.status_code, program.json()) == (401, {"detail": "Not authenticated"})


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil.example", "@evil.example"]
)
def test_a_login_leads_back_to_the_page_and_nowhere_else(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://flow.example/team")
    login = urlsplit(login_path(path))
    assert (login.netloc, login.path) == ("", "/team/api/v2/auth/login")
    (back,) = parse_qs(login.query)["next"]
    assert back.startswith("/team/safemerge/")
    assert urlsplit(urljoin("https://flow.example", back)).netloc == "flow.example"
    assert is_safe_url(back)


def test_overview_has_each_pipeline_with_its_latest_verdict(visit: Any, mlflow: Mlflow) -> None:
    first = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    promote(mlflow.ledger, "alpha-lora", first)
    latest = judged_run(mlflow.ledger, config("alpha"), "dag/2", REPORTS, Verdict.BLOCK, "BLOCK: too harmful")
    open_run(mlflow.ledger, config("alpha"), "dag/3")
    open_run(mlflow.ledger, config("beta"), "dag/4")
    visitor = visit(mlflow.history())
    alpha, beta = visitor.get("/pipelines.json").json()
    assert (alpha["pipeline"], alpha["verdict"], alpha["run_id"]) == ("alpha", "block", latest)
    assert (alpha["champion"], alpha["underway"]) == ("1", "running")
    assert alpha["outcomes"] == ["pass", "block", "running"]
    assert alpha["figures"]["candidate"]["suites"]["harm"]["rate"] == 0.04
    assert (beta["pipeline"], beta["verdict"], beta["champion"]) == ("beta", None, None)
    text = visitor.get("/").text
    assert "4.0 %" in text
    assert '<span class="figure">0.6</span>' in text
    assert "60.0 %" not in text
    assert 'title="BLOCK: too harmful"' in text


def test_pipeline_has_charts_champions_and_runs(visit: Any, mlflow: Mlflow) -> None:
    runs = [judged_run(mlflow.ledger, config("alpha"), f"dag/{number}", REPORTS) for number in (1, 2, 3)]
    promote(mlflow.ledger, "alpha-lora", runs[0])
    version = promote(mlflow.ledger, "alpha-lora", runs[1], approved_by="ada")
    for what, text in {"at": "2026-11-25", "by": "grace", "reason": "users complained"}.items():
        mlflow.ledger.client.set_model_version_tag("alpha-lora", version, tags.ROLLED_BACK + what, text)
    text = visit(mlflow.history()).get("/pipelines/alpha").text
    assert text.count("<figure>") == 3
    assert text.count("<circle") == 3 + 3 * 3 * 3  # the legend; charts, runs, arms
    assert text.count(">champion</span>") == 1
    assert text.index('>2 <span class="badge champion">') < text.index('<th scope="row">1</th>')
    assert '<td data-label="By">ada<br>' in text
    assert "taken back 2026-11-25 by grace: users complained" in text
    assert '<td data-label="By">the gate</td>' in text
    assert "made version 2 the champion" in text


def unopened(dag_run: str, ended_ms: int, failed: bool = True, given_key: str | None = None) -> UnopenedRun:
    dag_id, _, run_id = dag_run.partition("/")
    return UnopenedRun(dag_id, run_id, ended_ms, failed, given_key)


def failed_starts(visitor: TestClient) -> dict[str, str]:
    """What the overview's data say failed to start, by pipeline."""
    found = visitor.get("/pipelines.json").json()
    return {one["pipeline"]: one["failed_start"]["run_key"] for one in found if one["failed_start"]}


def test_overview_has_the_runs_that_failed_before_mlflow_knew_of_them(visit: Any, mlflow: Mlflow) -> None:
    judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    history = mlflow.history()
    later_ms = history.recent_runs()[0].started_ms + 60_000
    visitor = visit(history, unopened=[unopened("dag/2", later_ms), unopened("new/a b", 1_795_572_000_000)])
    alpha, new = visitor.get("/pipelines.json").json()
    assert (alpha["pipeline"], alpha["verdict"], alpha["outcomes"]) == ("alpha", "pass", ["pass"])
    assert alpha["failed_start"]["log"] == "/dags/dag/runs/2/tasks/open_run"
    assert new == {
        **dict.fromkeys(("verdict", "summary", "run_id", "run_key", "ended", "underway", "champion")),
        "pipeline": "new",
        "failed_start": {
            "run_key": "new/a b",
            "ended": "2026-11-25T02:00:00+00:00",
            "log": "/dags/new/runs/a%20b/tasks/open_run",
        },
        "outcomes": [],
        "figures": {},
    }
    text = visitor.get("/").text
    assert text.count("</span> failed to start</span>") == 2
    assert 'new/a b, <time datetime="2026-11-25T02:00:00+00:00">2026-11-25 02:00 UTC</time>' in text
    assert '<a href="/dags/new/runs/a%20b/tasks/open_run" data-leave="here">log of open_run</a>' in text


def test_what_came_later_ends_the_news_of_a_failed_start(visit: Any, mlflow: Mlflow) -> None:
    judged_run(mlflow.ledger, config("alpha"), "dag/2", REPORTS)
    history = mlflow.history()
    started_ms = history.recent_runs()[0].started_ms
    failed = unopened("dag/3", started_ms + 1)

    def told(*runs: UnopenedRun) -> dict[str, str]:
        return failed_starts(visit(history, unopened=runs))

    assert told(failed) == {"alpha": "dag/3"}
    assert told(unopened("dag/4", started_ms + 2), failed) == {"alpha": "dag/4"}
    assert told(unopened("dag/4", started_ms + 2, failed=False), failed) == {}  # nothing was new
    assert told(unopened("dag/1", started_ms)) == {}
    assert told(unopened("dag/2", started_ms + 1)) == {}  # cleared again: MLflow has it
    # Another DAG has made the same pipeline meanwhile.
    assert told(unopened("alpha/1", started_ms - 1)) == {}


def test_a_run_that_took_over_older_work_is_as_new_as_its_own_start(visit: Any, mlflow: Mlflow) -> None:
    monday = open_run(mlflow.ledger, config("alpha"), "dag/monday")
    other = judged_run(mlflow.ledger, config("alpha"), "dag/other", REPORTS, Verdict.BLOCK)
    tuesday = unopened("dag/tuesday", mlflow.history().run(other).started_ms + 1)
    assert failed_starts(visit(mlflow.history(), unopened=[tuesday])) == {"alpha": "dag/tuesday"}
    time.sleep(0.005)
    wednesday = mlflow.ledger.open_pipeline_run(monday.config, monday.plan, "dag/wednesday")
    mlflow.ledger.close_pipeline_run(wednesday, Verdict.PASS, "PASS", gate_run_id="0")
    assert wednesday.run_id == monday.run_id
    visitor = visit(mlflow.history(), unopened=[tuesday])
    assert failed_starts(visitor) == {}
    (alpha,) = visitor.get("/pipelines.json").json()
    assert (alpha["verdict"], alpha["outcomes"]) == ("pass", ["block", "pass"])
    text = visitor.get("/pipelines/alpha").text
    places = [text.index(what) for what in (">dag/wednesday<", ">dag/tuesday<", ">dag/other<")]
    assert places == sorted(places)


@pytest.mark.parametrize("tag", ["", "soon", "9" * 30, "-1"])
def test_a_start_that_no_one_can_read_is_that_of_the_record(mlflow: Mlflow, tag: str) -> None:
    run = open_run(mlflow.ledger, config("alpha"), "dag/1")
    for name in (tags.OPENED, tags.STARTED):
        mlflow.ledger.client.set_tag(run.run_id, name, tag)
    made_ms = mlflow.ledger.client.get_run(run.run_id).info.start_time
    (told,) = mlflow.history().recent_runs()
    assert (told.started_ms, told.last_started_ms) == (made_ms, made_ms)


def test_a_run_with_a_name_of_its_own_is_found_under_it(visit: Any, mlflow: Mlflow) -> None:
    judged_run(mlflow.ledger, config("alpha"), "nightly", REPORTS)
    later_ms = mlflow.history().recent_runs()[0].started_ms + 60_000
    open_run(mlflow.ledger, config("alpha"), "weekly")
    new = unopened("dag/2", later_ms, given_key="weekly")
    visitor = visit(mlflow.history(), unopened=[new])
    assert failed_starts(visitor) == {"alpha": "weekly"}
    assert '<a href="/dags/dag/runs/2/tasks/open_run"' in visitor.get("/pipelines/alpha").text


@pytest.mark.parametrize("given_key", ["weekly", None])
def test_a_judged_run_that_fails_to_start_again_is_told_as_both(
    visit: Any, mlflow: Mlflow, given_key: str | None
) -> None:
    key = given_key or "dag/tuesday"
    judged_run(mlflow.ledger, config("alpha"), key, REPORTS)
    ended_ms = mlflow.history().recent_runs()[0].ended_ms
    assert ended_ms is not None
    before, after = (unopened("dag/tuesday", ended_ms + ms, given_key=given_key) for ms in (-1, 1))
    assert failed_starts(visit(mlflow.history(), unopened=[before])) == {}  # the verdict came later
    visitor = visit(mlflow.history(), unopened=[after])
    assert failed_starts(visitor) == {"alpha": key}
    (alpha,) = visitor.get("/pipelines.json").json()
    assert (alpha["verdict"], alpha["outcomes"]) == ("pass", ["pass"])
    text = visitor.get("/pipelines/alpha").text
    assert (text.count(f">{key}<"), text.count("</span> failed to start</span>")) == (2, 1)


def test_a_run_that_goes_on_under_its_name_ends_what_failed_before(visit: Any, mlflow: Mlflow) -> None:
    monday = open_run(mlflow.ledger, config("alpha"), "weekly")
    mlflow.ledger.abandon_pipeline_run(monday)
    other = open_run(mlflow.ledger, config("alpha"), "dag/1")
    tuesday_ms = other.opened_at_ms + 1
    same_key = unopened("dag/tuesday", tuesday_ms, given_key="weekly")
    own_key = unopened("dag/tuesday", tuesday_ms)
    assert failed_starts(visit(mlflow.history(), unopened=[same_key])) == {"alpha": "weekly"}
    assert failed_starts(visit(mlflow.history(), unopened=[own_key])) == {"alpha": "dag/tuesday"}
    time.sleep(0.005)
    wednesday = open_run(mlflow.ledger, config("alpha"), "weekly")
    assert (wednesday.run_id, wednesday.opened_at_ms) == (monday.run_id, monday.opened_at_ms)
    assert mlflow.history().run(monday.run_id).ended_ms is None  # MLflow has Monday's end still
    visitor = visit(mlflow.history(), unopened=[same_key])
    assert failed_starts(visitor) == {}
    (alpha,) = visitor.get("/pipelines.json").json()
    assert alpha["outcomes"] == ["running", "running"]
    text = visitor.get("/pipelines/alpha").text
    assert (f"/runs/{wednesday.run_id}" in text, "failed to start" in text) == (True, False)
    assert f"/runs/{other.run_id}" in text
    assert failed_starts(visit(mlflow.history(), unopened=[own_key])) == {}  # of another run, and older news


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_first_task_that_failed_leaves_nothing_running(visit: Any, mlflow: Mlflow, status: str) -> None:
    for name in ("alpha", "beta"):
        judged_run(mlflow.ledger, config(name), f"dag/{name}", REPORTS)
    half = open_run(mlflow.ledger, config("alpha"), "dag/3")  # its record was made, but could not be filled
    mlflow.ledger.client.update_run(half.run_id, status=status)
    failed = unopened("dag/3", half.opened_at_ms + 5)
    visitor = visit(mlflow.history(), unopened=[failed])
    alpha, beta = visitor.get("/pipelines.json").json()
    assert alpha["failed_start"]["run_key"] == "dag/3"
    assert (alpha["underway"], alpha["outcomes"]) == (None, ["pass"])
    assert (beta["failed_start"], beta["outcomes"]) == (None, ["pass"])
    text = visitor.get("/pipelines/alpha").text
    assert text.count("</span> failed to start</span>") == text.count(">dag/3<") == 1
    assert "</span> running</span>" not in text
    assert "failed to start" not in visitor.get("/pipelines/beta").text
    # Started again, it found nothing new: that takes no record away.
    visitor = visit(mlflow.history(), unopened=[failed._replace(failed=False)])
    assert failed_starts(visitor) == {}
    assert f"/runs/{half.run_id}" in visitor.get("/pipelines/alpha").text


def test_a_run_that_was_judged_stays_where_it_fails_to_start_with_other_inputs(
    visit: Any, mlflow: Mlflow
) -> None:
    judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    plan = open_run(mlflow.ledger, config("alpha"), "dag/2").plan.model_copy(update={"inputs_digest": "0"})
    half = mlflow.ledger.open_pipeline_run(config("alpha"), plan, "dag/1")
    visitor = visit(mlflow.history(), unopened=[unopened("dag/1", half.opened_at_ms + 5)])
    (alpha,) = visitor.get("/pipelines.json").json()
    assert (alpha["failed_start"]["run_key"], alpha["verdict"]) == ("dag/1", "pass")
    assert alpha["outcomes"] == ["pass", "running"]  # the second is that of dag/2
    text = visitor.get("/pipelines/alpha").text
    assert (text.count(">dag/1<"), half.run_id in text) == (2, False)


def test_a_dag_of_several_pipelines_stands_for_itself(visit: Any, mlflow: Mlflow) -> None:
    for name in ("alpha", "beta"):
        judged_run(mlflow.ledger, config(name), f"any/{name}", REPORTS)
    history = mlflow.history()
    newest_ms = history.recent_runs()[0].started_ms
    late, early = unopened("any/2", newest_ms + 1), unopened("any/1", newest_ms)
    visitor = visit(history, unopened=[late, early])
    assert failed_starts(visitor) == {"any": "any/2"}
    assert "failed to start" not in visitor.get("/pipelines/alpha").text
    assert visitor.get("/pipelines/any").text.count("</span> failed to start</span>") == 2
    assert failed_starts(visit(history, unopened=[early])) == {}


def test_pipeline_has_failed_starts_among_its_runs(visit: Any, mlflow: Mlflow) -> None:
    for number in (1, 3):
        judged_run(mlflow.ledger, config("alpha"), f"dag/{number}", REPORTS)
    history = mlflow.history()
    newest, oldest = (run.started_ms for run in history.recent_runs())
    failed = [
        unopened("dag/4", newest + 1),
        unopened("dag/skipped", newest, failed=False),
        unopened("other/1", newest),
        unopened("dag/0", oldest - 1),
    ]
    text = visit(history, unopened=failed).get("/pipelines/alpha").text
    places = [text.index(f">dag/{number}<") for number in (4, 3, 1, 0)]
    assert places == sorted(places)
    assert text.count("</span> failed to start</span>") == 2
    assert '<a href="/dags/dag/runs/4/tasks/open_run" data-leave="here">log of open_run</a>' in text
    assert visit(history).get("/pipelines/other").status_code == 404


def test_run_has_figures_links_and_report(
    visit: Any, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__MLFLOW_URL", "https://mlflow.example")
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/scheduled__1", REPORTS)
    visitor = visit(mlflow.history())
    text = visitor.get(f"/runs/{run_id}").text
    assert "Fine-tuned, unrepaired" in text
    assert "22.0 %" in text
    assert f'href="https://mlflow.example/#/runs/{run_id}"' in text
    assert 'href="/dags/dag/runs/scheduled__1"' in text
    assert f'src="/safemerge/runs/{run_id}/report.html" sandbox="allow-scripts"' in text
    report = visitor.get(f"/runs/{run_id}/report.html")
    assert (report.status_code, report.text) == (200, "<!doctype html><h1>Report</h1>")


def test_a_run_says_how_many_prompts_were_asked(visit: Any, mlflow: Mlflow) -> None:
    reports = REPORTS | {"candidate": stopped_early(REPORTS["candidate"], planned=520)}
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", reports)
    history = mlflow.history()
    text = visit(history).get(f"/runs/{run_id}").text
    assert text.count('<span class="of">n=200 of 520, stopped early</span>') == 1
    assert text.count('<span class="of">n=200</span>') == 5  # three arms, two suites
    assert "candidate: 4.0 % (" in (chart := visit(history).get("/pipelines/alpha").text)
    assert chart.count("n=200 of 520, stopped early</title>") == 1


def test_a_report_is_served_so_that_it_cannot_act_as_the_user(visit: Any, mlflow: Mlflow) -> None:
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS, html=HOSTILE_REPORT)
    headers = visit(mlflow.history()).get(f"/runs/{run_id}/report.html").headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["sandbox"] == "allow-scripts"  # no origin, no forms, no windows
    assert policy["default-src"] == "'none'"
    assert "connect-src" not in policy
    assert policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "tag", [None, "https://evil.example/report.html", "runs:/../report.html", "runs:/" + "0" * 32 + "/a.html"]
)
def test_only_an_artifact_of_a_run_is_a_report(visit: Any, mlflow: Mlflow, tag: str | None) -> None:
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS, html=None)
    if tag:
        mlflow.ledger.client.set_tag(run_id, "safemerge.report", tag)
    answer = visit(mlflow.history()).get(f"/runs/{run_id}/report.html")
    assert answer.status_code == 404
    assert "This run has no report." in answer.text


def test_runs_of_other_dags_are_not_there(visit: Any, mlflow: Mlflow) -> None:
    mine = judged_run(mlflow.ledger, config("alpha"), "mine/1", REPORTS)
    theirs = judged_run(mlflow.ledger, config("beta"), "theirs/1", REPORTS)
    also = judged_run(mlflow.ledger, config("alpha"), "theirs/2", REPORTS, Verdict.BLOCK)
    visitor = visit(mlflow.history(), readable=Readable(frozenset({"mine"}), all_dags=False))
    assert [one["run_id"] for one in visitor.get("/pipelines.json").json()] == [mine]
    assert also not in visitor.get("/pipelines/alpha").text
    assert visitor.get("/pipelines/beta").status_code == 404
    assert [visitor.get(f"/runs/{run_id}").status_code for run_id in (mine, theirs)] == [200, 404]
    assert visitor.get(f"/runs/{theirs}/report.html").status_code == 404


def test_a_version_that_another_dag_released_is_there_and_no_more(visit: Any, mlflow: Mlflow) -> None:
    shared = config("alpha")
    other = config("beta").model_copy(update={"tracking": shared.tracking})
    mine = judged_run(mlflow.ledger, shared, "mine/1", REPORTS)
    theirs = judged_run(mlflow.ledger, other, "theirs/1", REPORTS)
    promote(mlflow.ledger, "alpha-lora", mine, approved_by="Ann")
    promote(mlflow.ledger, "alpha-lora", theirs, approved_by="Zoe")
    # Of no run: nobody's but who may see all.
    stray = promote(mlflow.ledger, "alpha-lora", theirs, approved_by="Uri")
    mlflow.ledger.client.delete_model_version_tag("alpha-lora", stray, tags.PIPELINE_RUN)
    text = visit(mlflow.history()).get("/pipelines/alpha").text
    assert all(said in text for said in ("Ann", "Zoe", "Uri", f"/runs/{theirs}"))
    readable = Readable(frozenset({"mine"}), all_dags=False)
    text = visit(mlflow.history(), readable=readable).get("/pipelines/alpha").text
    assert '<th scope="row">3 <span class="badge champion">champion</span>' in text
    assert text.count("a run that you may not see") == 2
    assert "Ann" in text
    assert f"/runs/{mine}" in text
    assert not any(said in text for said in ("Zoe", "Uri", theirs))


def test_names_are_text(visit: Any, mlflow: Mlflow) -> None:
    reports = {"candidate": evaluation("safemerge", 8, 120, harm=HOSTILE)}
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", reports, Verdict.BLOCK, HOSTILE)
    version = promote(mlflow.ledger, "alpha-lora", run_id, approved_by=HOSTILE)
    mlflow.ledger.client.set_tag(run_id, "safemerge.run_key", HOSTILE)
    mlflow.ledger.client.set_tag(run_id, "safemerge.model_version", HOSTILE)
    assert version == "1"
    visitor = visit(mlflow.history())
    for path in ("/", "/pipelines/alpha", f"/runs/{run_id}"):
        answer = visitor.get(path)
        assert answer.status_code == 200
        assert "&lt;img src=x" in answer.text
        assert "<img" not in answer.text
        assert "{{7*7}}" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
    mlflow.ledger.client.set_tag(run_id, "safemerge.pipeline", HOSTILE)
    answer = visit(mlflow.history()).get("/")
    assert '<th scope="row">&lt;img' in answer.text  # and no link: no pipeline can be called so
    for dag_id in (HOSTILE, "dag"):
        failed = [UnopenedRun(dag_id, HOSTILE, 2**42, failed=True)]
        text = visit(mlflow.history(), unopened=failed).get("/").text
        assert 'href="/dags/' in text
        assert "<img" not in text
        assert "\"'" not in text


@pytest.mark.parametrize(
    "path", ["/pipelines/none", "/pipelines/a'b", "/runs/none", "/runs/none/report.html"]
)
def test_what_is_not_there_is_said(visit: Any, mlflow: Mlflow, path: str) -> None:
    open_run(mlflow.ledger, config("alpha"), "dag/1")
    answer = visit(mlflow.history()).get(path)
    assert answer.status_code == 404
    assert '<p role="alert">There is no' in answer.text
    program = visit(mlflow.history()).get(path, headers={"Accept": "application/json"})
    assert list(program.json()) == ["detail"]


def test_a_step_of_a_pipeline_is_not_a_run_of_it(visit: Any, mlflow: Mlflow) -> None:
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    step_id = mlflow.ledger.client.get_run(run_id).data.tags["safemerge.gate_run_id"]
    assert visit(mlflow.history()).get(f"/runs/{step_id}").status_code == 404


def test_an_empty_mlflow_is_no_fault(visit: Any, mlflow: Mlflow) -> None:
    visitor = visit(mlflow.history())
    assert "MLflow holds no pipeline run" in visitor.get("/").text
    assert visitor.get("/pipelines.json").json() == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "Set MLFLOW_TRACKING_URI in the api-server"),
        ("sqlite:///mlflow.db", "such as http://mlflow:5000 (it is &#39;sqlite:///mlflow.db&#39;)"),
        ("postgresql://me:secret@db/mlflow", "(it is &#39;postgresql://db/mlflow&#39;)"),
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 does not answer"),
        ("http://me:secret@127.0.0.1:9", "MLflow at http://127.0.0.1:9 does not answer"),
    ],
)
def test_without_mlflow_the_page_says_what_to_do(visit: Any, address: str, said: str) -> None:
    answer = visit(History(lambda: MlflowApi({"MLFLOW_TRACKING_URI": address}))).get("/")
    assert answer.status_code == 503
    assert answer.headers["refresh"] == "5"
    assert said in answer.text


def test_style_script_and_icons_are_there(visit: Any) -> None:
    visitor = visit()
    for name, media_type in page.STATIC.items():
        answer = visitor.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)
    assert visitor.get("/app.py").status_code == 404
