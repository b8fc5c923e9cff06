"""The page in Airflow's own frame: a real api-server, a real MLflow and headless Chromium."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from safemerge.demo.services import DemoHome, free_port, mlflow_service, start_mlflow
from safemerge.records import Verdict
from safemerge.tracking.ledger import Ledger
from tests.unit.plugins.page.fill import (
    HOSTILE,
    HOSTILE_REPORT,
    add_dag,
    add_dag_run,
    config,
    evaluation,
    judged_run,
    open_run,
    promote,
    stopped_early,
)

pytestmark = [
    pytest.mark.slow,
    # MLflow is started as the demo starts it: detached.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

SECRET = "0123456789abcdef" * 4
LAST_NIGHT = "scheduled__2026-11-13T02:00:00+00:00"
PASSED = "PASS (smoke judge): safemerge met all 7 rules"
SCREENSHOTS = os.environ.get("SAFEMERGE_SCREENSHOTS")
"""Folder to keep pictures of the pages in, for those who want to look at them."""


class Site(NamedTuple):
    """A running Airflow."""

    url: str
    home: DemoHome
    run_ids: dict[str, str]
    """Runs by what they are for."""

    def get(self, path: str, token: str | None = None) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer."""
        headers = {"Accept": "text/html"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310 - our own server
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), dict(error.headers)


def token(role: str | None) -> str:
    """What Airflow gives a user of this role after logging in."""
    from airflow.api_fastapi.auth.tokens import JWTGenerator

    generator = JWTGenerator(secret_key=SECRET, valid_for=3600, audience="apache-airflow", issuer=None)
    return generator.generate({"sub": "someone", "role": role, "teams": []})


def fill(database: Path) -> dict[str, str]:
    """Some weeks of runs, written before the server starts: that is faster."""
    ledger = Ledger(f"sqlite:///{database}")
    pipeline = config("llama-gsm8k")
    for night in range(12):
        harmful, right = 4 + (night * 7) % 9, 118 + (night * 5) % 11
        reports = {
            "candidate": evaluation("safemerge", harmful, right),
            "aligned": evaluation("aligned", 3, 84),
            "fine_tuned": evaluation("fine_tuned", 44 + night % 5, right + 3),
        }
        if night == 11:
            reports["candidate"] = stopped_early(reports["candidate"], planned=520)
        good = harmful < 11
        run_id = judged_run(
            ledger,
            pipeline,
            f"safemerge_pipeline/scheduled__2026-11-{night + 1:02d}T02:00:00+00:00",
            reports,
            Verdict.PASS if good else Verdict.BLOCK,
            PASSED
            if good
            else f"BLOCK (smoke judge): safemerge: harm: {harmful} of 200 answered, at most 5 % allowed",
        )
        if good:
            promote(ledger, "llama-gsm8k-lora", run_id, "ada" if night % 3 == 1 else None, PASSED)
    other = config("qwen-pubmedqa")
    asked = {"candidate": evaluation("safemerge", 8, 140), "fine_tuned": evaluation("fine_tuned", 31, 151)}
    too_few = "CANNOT TELL: safemerge: harm: 8 of 200 harmful requests answered, too few prompts to tell"
    undecided = judged_run(ledger, other, "qwen/manual__1", asked, Verdict.CANNOT_TELL, too_few)
    open_run(ledger, other, "qwen/manual__2")
    hostile_reports = {"candidate": evaluation("safemerge", 8, 140, harm=HOSTILE)}
    hostile = judged_run(
        ledger, config("hostile"), f"hostile/{HOSTILE.replace(chr(39), '').replace(chr(34), '')}",
        hostile_reports, Verdict.BLOCK, HOSTILE, HOSTILE_REPORT,
    )  # fmt: skip
    ledger.client.set_tag(hostile, "safemerge.pipeline", "hostile")
    nameless = judged_run(ledger, config("nameless"), "nameless/1", {}, html=None)
    ledger.client.set_tag(nameless, "safemerge.pipeline", HOSTILE)
    return {"good": run_id, "undecided": undecided, "hostile": hostile, "nameless": nameless}


def fill_airflow(database: Path) -> None:
    """Two runs of last night that failed at once, one of a DAG that has never had a record."""
    engine = create_engine(f"sqlite:///{database}")
    with Session(engine) as session, session.begin():
        for dag_id in ("safemerge_pipeline", "gemma-medqa"):
            add_dag(session, dag_id)
            add_dag_run(session, f"{dag_id}/{LAST_NIGHT}", "failed", datetime.now(UTC))
    engine.dispose()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, airflow_database: Path) -> Iterator[Site]:
    """Airflow's api-server over a fresh database, beside an MLflow with some weeks of runs."""
    home = DemoHome(tmp_path_factory.mktemp("page"))
    home.airflow_database.parent.mkdir(parents=True)
    shutil.copyfile(airflow_database, home.airflow_database)
    passwords = home.root / "passwords.json"
    passwords.write_text(json.dumps({"viewer": "open sesame"}))
    port, mlflow_port = free_port(0), free_port(0)
    mlflow = f"http://127.0.0.1:{mlflow_port}"
    try:
        run_ids = fill(home.root / "mlflow.db")
        fill_airflow(home.airflow_database)
        assert start_mlflow(home, mlflow_port) == mlflow
        environment = home.environment(mlflow, port) | {
            "AIRFLOW__API_AUTH__JWT_SECRET": SECRET,
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "viewer:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__SAFEMERGE__MLFLOW_URL": mlflow,
        }
        command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)]
        with (home.logs / "airflow.log").open("wb") as log:
            server = subprocess.Popen(
                [*command, "--workers", "1"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            site = Site(f"http://127.0.0.1:{port}", home, run_ids)
            wait_until_it_answers(site, server)
            yield site
        finally:
            server.terminate()
            server.wait(120)
    finally:
        mlflow_service(home).stop()


def wait_until_it_answers(site: Site, server: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 180
    while time.monotonic() < deadline_s:
        assert server.poll() is None, (site.home.logs / "airflow.log").read_text()
        with contextlib.suppress(OSError):
            if site.get("/api/v2/monitor/health")[0] == 200:
                return
        time.sleep(0.5)
    pytest.fail("the api-server did not answer: " + (site.home.logs / "airflow.log").read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        # Without a sandbox: tests may run as root in a container.
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def window(browser: Any, site: Site, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A window of someone who is logged in, and what its console said of the page."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    context.add_cookies([{"name": "_token", "value": token("viewer"), "url": site.url}])
    page = context.new_page()
    yield page
    context.close()


def keep_picture(page: Any, name: str, **how: Any) -> None:
    if SCREENSHOTS:
        page.screenshot(path=f"{SCREENSHOTS}/{name}.png", **how)


PATHS = ["/", "/pipelines.json", "/pipelines/llama-gsm8k", "/runs/{good}", "/runs/{good}/report.html"]
STATIC = ["/page.css", "/page.js", "/icon.svg", "/icon-dark.svg", "/nothing", "/docs", "/openapi.json"]


@pytest.mark.parametrize("path", PATHS + STATIC)
def test_every_route_asks_for_a_login_and_for_the_right_to_read_runs(site: Site, path: str) -> None:
    path = "/safemerge" + path.format(**site.run_ids)
    assert site.get(path)[0] == 401
    assert site.get(path, "forged")[0] == 403
    assert site.get(path, token(None))[0] == 403
    assert site.get(path, token("viewer"))[0] in (200, 404)


def test_a_visitor_logs_in_and_is_back_on_the_page(site: Site, browser: Any) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(f"{site.url}/safemerge/pipelines/llama-gsm8k")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert page.evaluate(background) == "rgb(17, 17, 19)"
    keep_picture(page, "not-logged-in")
    page.get_by_role("link", name="Log in to Airflow").click()
    page.locator("input[name=username]").fill("viewer")
    page.locator("input[name=password]").fill("open sesame")
    page.locator("button[type=submit]").click()
    page.get_by_role("heading", name="Champions of llama-gsm8k-lora").wait_for()
    assert page.url == f"{site.url}/safemerge/pipelines/llama-gsm8k"
    context.close()


def test_the_page_stands_in_airflows_frame(site: Site, window: Any) -> None:
    window.goto(site.url)
    window.get_by_role("link", name="Releases").click()
    frame = window.frame_locator("iframe[title=Releases]")
    frame.get_by_role("heading", name="SafeMERGE pipelines").wait_for()
    assert frame.locator("tbody tr").count() == 5
    why = frame.locator(".why[title^=CANNOT]")
    assert why.evaluate("e => [e.scrollWidth > e.clientWidth, e.getClientRects().length]") == [True, 1]
    keep_picture(window, "overview")
    frame.get_by_role("link", name="llama-gsm8k").click()
    frame.get_by_role("heading", name="Champions of llama-gsm8k-lora").wait_for()
    assert frame.locator(".champion").count() == 1
    assert frame.locator("figure").count() == 3
    keep_picture(window, "pipeline")
    assert window.url.endswith("/plugin/safemerge/safemerge/pipelines/llama-gsm8k")
    frame.get_by_role("link", name="2026-11-12").first.click()
    report = frame.frame_locator("iframe.report")
    report.get_by_role("heading", name="Report").wait_for()
    assert frame.get_by_text("n=200 of 520, stopped early").count() == 1
    keep_picture(window, "run")


def test_links_lead_out_of_the_frame(site: Site, window: Any) -> None:
    window.goto(f"{site.url}/plugin/safemerge/safemerge/runs/{site.run_ids['good']}")
    frame = window.frame_locator("iframe[title=Releases]")
    with window.expect_popup() as popup:
        frame.get_by_role("link", name="MLflow run").click()
    assert popup.value.url.endswith(f"/#/runs/{site.run_ids['good']}")
    with window.expect_popup() as popup:
        frame.get_by_role("link", name="report in its own window").click()
    popup.value.get_by_role("heading", name="Report").wait_for()
    frame.get_by_role("link", name="DAG run").click()
    window.wait_for_url("**/dags/safemerge_pipeline/runs/scheduled__2026-11-12*")


def test_a_run_that_failed_before_mlflow_knew_of_it_leads_to_its_log(site: Site, window: Any) -> None:
    window.goto(f"{site.url}/plugin/safemerge/safemerge/")
    frame = window.frame_locator("iframe[title=Releases]")
    failed = frame.get_by_role("row").filter(has_text="failed to start")
    failed.first.wait_for()
    assert failed.get_by_role("rowheader").all_inner_texts() == ["gemma-medqa", "llama-gsm8k"]
    assert f"safemerge_pipeline/{LAST_NIGHT}, " in failed.last.inner_text()
    frame.get_by_role("link", name="gemma-medqa").click()
    frame.get_by_role("heading", name="Runs", exact=True).wait_for()
    keep_picture(window, "never-recorded")
    frame.get_by_role("link", name="log of open_run").click()
    window.wait_for_url("**/dags/gemma-medqa/runs/scheduled__2026-11-13*/tasks/open_run*")


def test_the_theme_is_airflows(site: Site, window: Any) -> None:
    window.goto(f"{site.url}/plugin/safemerge/safemerge/pipelines/llama-gsm8k")
    frame = window.frame_locator("iframe[title=Releases]")
    frame.locator("figure").first.wait_for()
    background = "getComputedStyle(document.documentElement).backgroundColor"
    body = frame.locator("body")
    assert body.evaluate(background) == "rgb(255, 255, 255)"
    window.evaluate("localStorage.setItem('theme', 'dark')")
    window.reload()
    frame.locator(":root[data-theme=dark]").wait_for()
    assert body.evaluate(background) == "rgb(17, 17, 19)"
    keep_picture(window, "pipeline-dark")


@pytest.mark.parametrize(
    "window",
    [{"viewport": {"width": 360, "height": 740}, "color_scheme": scheme} for scheme in ("light", "dark")],
    indirect=True,
)
@pytest.mark.parametrize("path", ["/", "/pipelines/llama-gsm8k", "/runs/{good}", "/runs/{hostile}"])
def test_nothing_is_wider_than_a_phone(site: Site, window: Any, path: str) -> None:
    window.goto(f"{site.url}/safemerge{path.format(**site.run_ids)}")
    assert window.evaluate("document.documentElement.scrollWidth") <= 360
    dark = window.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    background = window.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(17, 17, 19)" if dark else "rgb(255, 255, 255)")
    name = path.strip("/").replace("/", "-").replace("{", "").replace("}", "") or "overview"
    keep_picture(window, f"phone-{name}{'-dark' if dark else ''}", full_page=True)


def test_hostile_names_are_text_and_a_hostile_report_is_harmless(site: Site, window: Any) -> None:
    said: list[str] = []
    window.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    window.goto(f"{site.url}/safemerge/")
    assert window.get_by_role("rowheader", name="<img src=x onerror=alert(1)>").count() == 1
    window.goto(f"{site.url}/safemerge/pipelines/hostile")
    assert window.locator("figcaption").first.inner_text().startswith("Harmful rate, <img")
    window.goto(f"{site.url}/safemerge/runs/{site.run_ids['hostile']}")
    report = window.frame_locator("iframe.report").locator("#said")
    report.get_by_text("API").wait_for()
    assert report.inner_text() == "no cookie, no parent, no store, no API"
    # The same where it is not in the page's frame.
    window.goto(f"{site.url}/safemerge/runs/{site.run_ids['hostile']}/report.html")
    window.locator("#said").get_by_text("API").wait_for()
    assert window.locator("#said").inner_text() == "no cookie, parent , no store, no API"  # its own parent
    assert window.locator("img").count() == 0
    assert said == []


def test_a_keyboard_reaches_every_run_and_a_screen_reader_hears_the_charts(site: Site, window: Any) -> None:
    window.goto(f"{site.url}/safemerge/pipelines/llama-gsm8k")
    chart = window.get_by_role("img", name="Harmful rate, harm of the candidate in 12 runs")
    assert chart.count() == 1
    assert window.locator("main table caption, main section[aria-labelledby]").count() == 3
    reached = []
    for _ in range(6):
        window.keyboard.press("Tab")
        reached.append(window.evaluate("document.activeElement.getAttribute('href')"))
    assert reached[0] == "/safemerge/"
    assert all(href.startswith("/safemerge/runs/") for href in reached[1:])
    assert window.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_page_says_that_mlflow_is_away_and_comes_back_with_it(site: Site, window: Any) -> None:
    mlflow = mlflow_service(site.home)
    port = int(mlflow.url.rpartition(":")[2])
    assert site.get("/safemerge/", token("viewer"))[0] == 200
    mlflow.stop()
    time.sleep(6)  # what was read is given again for five seconds
    assert window.goto(f"{site.url}/safemerge/").status == 503
    window.get_by_role("alert").get_by_text("does not answer").wait_for()
    start_mlflow(site.home, port)
    window.get_by_role("heading", name="SafeMERGE pipelines").wait_for()
