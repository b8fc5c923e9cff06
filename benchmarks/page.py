"""The page in Airflow's UI over an MLflow with a thousand pipeline runs.

One pipeline run with its ten steps is recorded as the pipeline records it, and copied in MLflow's
database under other names and times, with some champions. Then a real MLflow server and a real Airflow
api-server are started, and someone who is logged in asks for each page: ``first``, when the api-server
has just started; ``cold``, when nothing is kept that was read from MLflow before (it is for five
seconds, older runs for a minute); and ``warm``. Times are wall-clock, of whole answers over HTTP,
Airflow's own login and permissions included.

    python benchmarks/page.py                 # 1,000 runs of 50 pipelines
    python benchmarks/page.py --runs 100      # a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measuring import Json, machine, save

from safemerge.config.pipeline import PipelineConfig
from safemerge.demo.services import (
    HOST,
    DemoHome,
    Service,
    free_port,
    mlflow_service,
    prepare_airflow,
    start_mlflow,
)
from safemerge.records import EvaluationReport, JudgeRecord, SuiteKind, SuiteReport, UtilityReport, Verdict
from safemerge.stats import wilson_interval
from safemerge.tracking import tags
from safemerge.tracking.figures import run_figures
from safemerge.tracking.ledger import Ledger, PipelinePlan

GOAL_MS = 300
HARMFUL, HARMLESS = SuiteKind.HARMFUL, SuiteKind.OVER_REFUSAL
SUITES = {"harmbench": HARMFUL, "directharm4": HARMFUL, "hex_phi": HARMFUL, "orbench_hard": HARMLESS}
PIPELINES = 50
PIPELINE = "recipe-07"
EXPIRY_S = 5.2
"""After so many seconds the page asks MLflow again."""
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")
"""Tables of MLflow's database that hold a run, under its id in the column ``run_uuid``."""


def main() -> None:
    """Fill, start, measure, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="pipeline runs in MLflow")
    parser.add_argument("--repeats", type=int, default=5, help="times that each page is asked for, cold")
    args = parser.parse_args()
    result: Json = {"machine": machine(), "runs": args.runs, "pipelines": PIPELINES}
    with tempfile.TemporaryDirectory() as scratch:
        home = DemoHome(Path(scratch))
        ids = fill(home, args.runs)
        result["mlflow_runs"] = len(ids) * args.runs
        result["pages"] = measure(home, args.repeats, ids[0])
    slowest = max(page[kind] for page in result["pages"].values() for kind in page)
    result |= {"goal_ms": GOAL_MS, "slowest_ms": slowest, "met": slowest < GOAL_MS}
    print(json.dumps(result, indent=2))
    print(f"kept in {save('page', result)}")


def fill(home: DemoHome, runs: int) -> list[str]:
    """MLflow's database with so many pipeline runs; ids of the runs that one is made of, it first."""
    database = home.root / "mlflow.db"
    ledger = Ledger(f"sqlite:///{database}")
    ids = record(ledger)
    with sqlite3.connect(database) as connection:
        template = rows_of(connection, ids)
        for number in range(1, runs):
            copy(connection, template, ids, number)
    for number in range(min(runs, PIPELINES)):
        name = f"recipe-{number:02d}-lora"
        ledger.client.create_registered_model(name)
        labels = {tags.ADAPTER_DIGEST: "0" * 64, tags.PIPELINE_RUN: ids[0], tags.VERDICT: "pass"}
        version = ledger.client.create_model_version(name, f"runs:/{ids[0]}/adapter", tags=labels)
        ledger.client.set_registered_model_alias(name, "champion", version.version)
    return ids


def record(ledger: Ledger) -> list[str]:
    """One pipeline run as the pipeline leaves it; its id and those of its steps."""
    training = {"data": [{"path": "data.jsonl"}], "steps": 2}
    config = PipelineConfig.model_validate(
        {
            "name": "recipe-00",
            "aligned_model": "aligned",
            "unaligned_model": "unaligned",
            "task_training": training,
            "safety_training": training,
            "evaluation": {
                "utility": {"task": "gsm8k", "metric": "exact_match"},
                "suites": [{"name": name, "kind": kind, "path": "p.jsonl"} for name, kind in SUITES.items()],
            },
            "gate": {"max_harmful_rate": 0.2, "max_over_refusal_rate": 0.2},
            "tracking": {"experiment": "page", "registered_model": "recipe-00-lora"},
        }
    )
    plan = PipelinePlan(
        pipeline=config.name, inputs_digest="0" * 64, model_digests={}, task_digest="0", data_digests={}
    )
    run = ledger.open_pipeline_run(config, plan, "recipe-00/scheduled__0")
    ids = [run.run_id]
    labels = ("train_task_adapter", "train_safety_adapter", "merge", *(f"evaluate_{n}" for n in range(5)))
    for label in (*labels, "gate", "promote"):
        with ledger.step_run(run, label.partition("_")[0], "0" * 64, label) as step:
            step.log_params(config.evaluation.model_dump(mode="json"))
            step.log_metrics({f"harmful_rate{end}.{n}": 0.1 for n in SUITES for end in ("", "_low", "_high")})
            step.finish(figures={"summary": "done"})
        ids.append(step.run_id)
    reports = {name: evaluation(name) for name in ("candidate", "aligned", "fine_tuned")}
    ledger.note_on_pipeline_run(run, tags.FIGURES, run_figures(reports).to_tag())
    summary = "PASS: safemerge met all 7 rules " + "of the policy; " * 20
    ledger.close_pipeline_run(run, verdict=Verdict.PASS, summary=summary, gate_run_id=ids[-2])
    return ids


def evaluation(arm: str) -> EvaluationReport:
    """Figures of one arm on four suites of 200 prompts."""
    suites = tuple(
        SuiteReport(
            suite=name,
            kind=kind,
            judge=JudgeRecord(id="judge", revision="1", smoke=False),
            prompts_digest="0",
            protocol={"max_new_tokens": 64},
            flags={str(index): index < 9 for index in range(200)},
            rate=9 / 200,
            interval=wilson_interval(9, 200),
        )
        for name, kind in SUITES.items()
    )
    utility = UtilityReport(
        task="gsm8k",
        metric="exact_match",
        higher_is_better=True,
        value=0.6,
        scores={str(index): float(index < 120) for index in range(200)},
        task_digest="0",
        protocol={"num_fewshot": 0},
    )
    return EvaluationReport(arm=arm, adapter_digest="0", model_digest="0", utility=utility, suites=suites)


class Rows(NamedTuple):
    """What one table holds of some runs."""

    columns: list[str]
    values: list[tuple[Any, ...]]


def rows_of(connection: sqlite3.Connection, ids: list[str]) -> dict[str, Rows]:
    """What MLflow's tables hold of runs, by table."""
    places = ", ".join("?" * len(ids))
    found = {}
    for table in TABLES:
        cursor = connection.execute(f"SELECT * FROM {table} WHERE run_uuid IN ({places})", ids)  # noqa: S608
        found[table] = Rows([entry[0] for entry in cursor.description], cursor.fetchall())
    return found


def copy(connection: sqlite3.Connection, template: dict[str, Rows], ids: list[str], number: int) -> None:
    """The same runs once more: as many minutes later, and of another pipeline."""
    renamed = {run_id: uuid.uuid4().hex for run_id in ids}
    pipeline = f"recipe-{number % PIPELINES:02d}"

    def changed(table: str, column: str, value: Any) -> Any:
        if column == "run_uuid":
            return renamed[value]
        if table == "runs" and column in ("start_time", "end_time"):
            return value + number * 60_000
        if table == "tags" and column == "value":
            text = value.replace("recipe-00", pipeline)
            return re.sub(r"[0-9a-f]{32}", lambda found: renamed.get(found[0], found[0]), text)
        return value

    for table, (columns, values) in template.items():
        names = ", ".join(f'"{column}"' for column in columns)
        places = ", ".join("?" * len(columns))
        copies = [
            [changed(table, column, value) for column, value in zip(columns, row, strict=True)]
            for row in values
        ]
        connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", copies)  # noqa: S608


def measure(home: DemoHome, repeats: int, run_id: str) -> dict[str, Json]:
    """Times of each page, by its path."""
    paths = {
        "/": "/",
        "/pipelines.json": "/pipelines.json",
        "/pipelines/<name>": f"/pipelines/{PIPELINE}",
        "/runs/<id>": f"/runs/{run_id}",
    }
    passwords = home.root / "passwords.json"
    passwords.write_text('{"viewer": "viewer"}')
    server = Service(home, "api-server", "/api/v2/monitor/health", signal.SIGTERM)
    try:
        port = free_port(0)
        environment = home.environment(start_mlflow(home, 0), port) | {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "viewer:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(32).hex(),
        }
        prepare_airflow(home, environment)
        command = [*(sys.executable, "-m", "airflow", "api-server"), *("--host", HOST, "--port", str(port))]
        url = server.start([*command, "--workers", "1"], port, environment)
        headers = {"Authorization": f"Bearer {log_in(url)}", "Accept-Encoding": "gzip"}
        asking = {name: asked(f"{url}/safemerge{path}", headers) for name, path in paths.items()}
        first = asking["/"]()
        time.sleep(5)  # older runs are read meanwhile
        cold: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(repeats):
            for name, ask in asking.items():
                time.sleep(EXPIRY_S)
                cold[name].append(ask())
        pages: dict[str, Json] = {}
        for name, ask in asking.items():
            ask()
            warm = [ask() for _ in range(10)]
            pages[name] = {"cold_ms": statistics.median(cold[name]), "warm_ms": statistics.median(warm)}
        pages["/"]["first_ms"] = first
    finally:
        server.stop()
        mlflow_service(home).stop()
    return pages


def log_in(url: str) -> str:
    """A token of Airflow's."""
    body = json.dumps({"username": "viewer", "password": "viewer"}).encode()
    request = urllib.request.Request(f"{url}/auth/token", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
        token: str = json.load(answer)["access_token"]
    return token


def asked(url: str, headers: dict[str, str]) -> Callable[[], float]:
    """Asks for an address; milliseconds until the whole answer was there."""

    def ask() -> float:
        start_s = time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:  # noqa: S310
            answer.read()
        return round(1000 * (time.perf_counter() - start_s), 1)

    return ask


if __name__ == "__main__":
    main()
