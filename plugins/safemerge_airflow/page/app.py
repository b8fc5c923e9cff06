"""The page's routes. All of them read; all of them are behind Airflow's login and permissions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException as StarletteHTTPException

from safemerge_airflow import OPEN_RUN_TASK
from safemerge_airflow.mlflow_link import mlflow_run_url
from safemerge_airflow.page import login_path, page_path, views
from safemerge_airflow.page.access import Readable, ReadableDags, may_read_runs
from safemerge_airflow.page.chart import RUNS, charts
from safemerge_airflow.page.history import NEWEST, VERSIONS, History
from safemerge_airflow.page.mlflow_api import MlflowUnavailableError
from safemerge_airflow.page.records import ModelVersion, PipelineRun
from safemerge_airflow.page.unopened import UnopenedRuns

HERE = Path(__file__).parent
STATIC = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "icon-dark.svg": "image/svg+xml",
}

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; frame-src 'self'; "
    "frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
"""No script, style or frame but the page's own: a name that slipped through as HTML would do nothing."""

REFUSED_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""Who is not let in gets no style sheet either: that answer brings its own style, and nothing else."""

REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
)
"""A report is a document of an origin of its own: it cannot read cookies, send data or act as the user."""

MAX_REPORT_BYTES = 64 * 2**20

AGAIN_S = 5
"""A page that found MLflow away asks again after so long."""

app = FastAPI(
    title="safemerge",
    dependencies=[Depends(may_read_runs)],
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
templates.globals |= {
    "page_path": page_path,
    "mlflow_run_url": mlflow_run_url,
    "verdict": views.of_verdict,
    "failed_to_start": views.FAILED_TO_START,
    "open_run_task": OPEN_RUN_TASK,
    "arm_titles": views.ARMS,
    "chart_runs": RUNS,
    "most_runs": NEWEST,
    "most_versions": VERSIONS,
}
templates.filters |= {
    "when": views.when,
    "iso": views.iso,
    "lasted": views.lasted,
    "quoted": views.quoted,
    "log": views.log,
}

_history = History()


def history() -> History:
    """Dependency: what MLflow knows, kept for all users together."""
    return _history


HistoryDep = Annotated[History, Depends(history)]


def warm_up() -> None:
    """Do beforehand what the first request would wait for: compile templates, and ask MLflow once."""
    for name in templates.list_templates():
        templates.get_template(name)
    with suppress(MlflowUnavailableError):  # visitors are told
        _history.recent_runs()
        _history.champions()


@app.get("/")
def overview(readable: ReadableDags, unopened: UnopenedRuns, history: HistoryDep) -> HTMLResponse:
    """All pipelines, each with its latest verdict."""
    runs = readable.of(history.recent_runs())
    pipelines = views.pipelines(runs, history.champions(), unopened)
    return _page("overview.html", pipelines=pipelines, is_complete=history.is_complete)


@app.get("/pipelines.json")
def overview_data(readable: ReadableDags, unopened: UnopenedRuns, history: HistoryDep) -> JSONResponse:
    """The same as data."""
    runs = readable.of(history.recent_runs())
    pipelines = views.pipelines(runs, history.champions(), unopened)
    return JSONResponse([views.plain(pipeline) for pipeline in pipelines], headers=_headers(PAGE_POLICY))


@app.get("/pipelines/{name}")
def pipeline(name: str, readable: ReadableDags, unopened: UnopenedRuns, history: HistoryDep) -> HTMLResponse:
    """One pipeline: its figures over runs, its champions and its runs."""
    runs = readable.of(history.runs_of(name))
    failed = [one for one in unopened if one.failed]
    # A DAG may make several pipelines: all runs together say whose one is that failed to start.
    known = runs + (readable.of(history.recent_runs()) if failed else [])
    rows = views.rows(runs, views.by_pipeline(failed, known).get(name, ()))
    if not rows:
        raise HTTPException(404, "There is no run of such a pipeline, or none that you may see.")
    model = next((run.registered_model for run in runs if run.registered_model), None)
    seen = {run.run_id for run in runs}
    versions = [
        one if one.pipeline_run_id in seen or _may_see(one, readable, history) else one.withheld()
        for one in (history.versions(model) if model else [])
    ]
    return _page(
        "pipeline.html",
        name=name,
        rows=rows,
        run_count=len(runs),
        model=model,
        champion=history.champion(model) if model else None,
        versions=versions,
        charts=charts(runs),
    )


@app.get("/runs/{run_id}")
def run(run_id: str, readable: ReadableDags, history: HistoryDep) -> HTMLResponse:
    """One run with its report."""
    found = _run(run_id, readable, history)
    arms = views.arms(found)
    return _page(
        "run.html",
        run=found,
        outcome=views.outcome(found),
        has_pipeline_page=views.has_page(found.pipeline),
        arms=arms,
        figure_names=list(dict.fromkeys(name for arm in arms for name in arm.figures)),
        dag_run=views.dag_run(found),
        report_path=page_path(f"/runs/{views.quoted(run_id)}/report.html"),
    )


@app.get("/runs/{run_id}/report.html")
def report(run_id: str, readable: ReadableDags, history: HistoryDep) -> Response:
    """The report itself, as a document that cannot act as the user."""
    found = _run(run_id, readable, history)
    with ExitStack() as stack:
        answer = stack.enter_context(history.report(found))
        if answer is None:
            raise HTTPException(404, "This run has no report.")
        closing = stack.pop_all()

    def body() -> Iterator[bytes]:
        sent = 0
        with closing:
            for chunk in answer.iter_bytes():
                sent += len(chunk)
                if sent > MAX_REPORT_BYTES:
                    return
                yield chunk

    return StreamingResponse(body(), media_type="text/html", headers=_headers(REPORT_POLICY))


@app.get("/{name}")
def static(name: str) -> FileResponse:
    """Style, script and icons."""
    if name not in STATIC:
        raise HTTPException(404, "There is no such page.")
    headers = _headers(PAGE_POLICY) | {"Cache-Control": "private, max-age=300"}
    return FileResponse(HERE / "static" / name, media_type=STATIC[name], headers=headers)


@app.exception_handler(MlflowUnavailableError)
def say_unavailable(request: Request, error: MlflowUnavailableError) -> Response:
    """MLflow is away or unknown: a page that says so and tries again, not a fault of Airflow's."""
    answer = _message(request, 503, str(error))
    answer.headers["Refresh"] = str(AGAIN_S)
    return answer


@app.exception_handler(StarletteHTTPException)
def say_refused(request: Request, error: StarletteHTTPException) -> Response:
    """Whatever is refused or not found, as a page for people and as JSON for programs."""
    return _message(request, error.status_code, str(error.detail))


def _run(run_id: str, readable: ReadableDags, history: History) -> PipelineRun:
    found = history.run(run_id)
    if found is None or not readable.allows(found):
        raise HTTPException(404, "There is no such run, or none that you may see.")
    return found


def _may_see(version: ModelVersion, readable: Readable, history: History) -> bool:
    """Whether the user may see the run that released a version: another DAG may release the same model."""
    if readable.all_dags or version.pipeline_run_id is None:
        return readable.all_dags
    found = history.run(version.pipeline_run_id)
    return found is not None and readable.allows(found)


def _page(template: str, status: int = 200, policy: str = PAGE_POLICY, **values: Any) -> HTMLResponse:
    text = templates.get_template(template).render(**values)
    return HTMLResponse(text, status, headers=_headers(policy))


def _message(request: Request, status: int, text: str) -> Response:
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"detail": text}, status, headers=_headers(PAGE_POLICY))
    title = views.TITLES.get(status, "Sorry")
    if status in (401, 403):
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        return _page(
            "refused.html", status, REFUSED_POLICY, text=text, title=title, login_path=login_path(path)
        )
    return _page("message.html", status, text=text, title=title)


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "private, no-store",
    }
