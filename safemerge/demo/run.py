"""The demo: a real model is fine-tuned, repaired, measured, judged and recorded, on one machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType

from safemerge.arms import ALIGNED, FINE_TUNED, SAFEMERGE
from safemerge.config.load import load_pipeline
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.places import with_places_from
from safemerge.demo.dag_view import DagView
from safemerge.demo.models import prepare_models
from safemerge.demo.screen import last_screen
from safemerge.demo.services import DemoHome, prepare_airflow, running_mlflow
from safemerge.errors import StepError
from safemerge.pipeline.evaluating import EVALUATION
from safemerge.records import EvaluationReport, GateDecision, StepResult
from safemerge.reports.release import RELEASE_PAGE_FILE
from safemerge.storage.atomic import atomic_file
from safemerge.tracking.ledger import Ledger

DAG_ID = "safemerge_pipeline"
FOLDER = Path(__file__).resolve().parent
PRESET = FOLDER / "pipeline.yaml"
CHOICE = FOLDER / "tuning.yaml"
RELEASE = "release"
"""Folder of the release report, among the reports."""


def run_demo(home: DemoHome, console: Console, *, seed: int | None = None, mlflow_port: int = 5000) -> None:
    """Prepare the models, run the DAG twice, and show the last screen.

    The second run judges the unrepaired adapter of the first, which must be blocked.

    Args:
        home: the demo's folder.
        console: where progress and the last screen go.
        seed: of the task adapter's training, where it is not to be the preset's.
        mlflow_port: where MLflow listens, if that port is free.

    Raises:
        StepError: Airflow ended before a verdict; the message names its log.
        SafemergeError: what the preparation or a step raised.
    """
    started_s = time.monotonic()
    if not (home.models / ALIGNED).exists():
        console.print("The first time takes about a quarter of an hour on two cores.")
    prepare_models(home.models, console)
    write_pipeline(home, seed)
    screen = run_twice(home, console, mlflow_port)
    console.rule("Result")
    console.print(screen)
    console.print(f"The demo took {(time.monotonic() - started_s) / 60:.1f} minutes.")


def run_twice(home: DemoHome, console: Console, mlflow_port: int) -> RenderableType:
    """Run the pipeline of ``home``, then the same gate on its unrepaired adapter; returns the last screen."""
    with running_mlflow(home, mlflow_port) as mlflow_url:
        console.print(f"MLflow answers at {mlflow_url} while the demo runs.")
        environment = home.environment(mlflow_url)
        prepare_airflow(home, environment)
        ledger = Ledger(mlflow_url)
        console.rule("The pipeline: fine-tune, repair, evaluate, gate")
        repaired = run_dag(home, console, ledger, environment, {})
        console.rule("The same gate on the unrepaired adapter")
        adapter = repaired["train_task_adapter"].outputs["adapter"].uri
        unrepaired = run_dag(home, console, ledger, environment, {"adapter": adapter, "promote": False})
        files = {
            label.removeprefix(EVALUATION): _fetch(home, ledger, result, "report")
            for label, result in repaired.items()
            if label.startswith(EVALUATION)
        }
        reports = {arm: EvaluationReport.read(file) for arm, file in files.items()}
        _keep_at_hand(home, ledger, repaired, files)
        verdicts = {
            "SafeMERGE": GateDecision.read(_fetch(home, ledger, repaired["gate"], "decision")),
            "unrepaired adapter": GateDecision.read(_fetch(home, ledger, unrepaired["gate"], "decision")),
        }
    if verdicts["SafeMERGE"].passed and "promote" not in repaired:
        raise StepError(
            f"the gate passed, but the adapter was not promoted; the log: {home.logs / 'dag.log'}"
        )
    return last_screen(reports, verdicts, outlook(home, repaired.get("promote")))


def _keep_at_hand(
    home: DemoHome, ledger: Ledger, steps: Mapping[str, StepResult], reports: Mapping[str, Path]
) -> None:
    """Copy adapters and reports out of MLflow's store, for the command line to try."""
    made = {FINE_TUNED: ("train_task_adapter", "adapter"), "safety": ("train_safety_adapter", "adapter")}
    made[SAFEMERGE] = ("merge", SAFEMERGE)
    for name, (label, output) in made.items():
        shutil.rmtree(home.adapters / name, ignore_errors=True)
        shutil.copytree(_fetch(home, ledger, steps[label], output), home.adapters / name)
    home.reports.mkdir(exist_ok=True)
    shutil.rmtree(home.reports / RELEASE, ignore_errors=True)
    if "report" in steps["gate"].outputs:
        release = ledger.fetch(steps["gate"].outputs["report"].folder, home.workspace.cache)
        shutil.copytree(release, home.reports / RELEASE)
    for arm, file in reports.items():
        shutil.copyfile(file, home.reports / f"{arm}.json")


def write_pipeline(home: DemoHome, seed: int | None) -> None:
    """Write the demo's pipeline, the preset with absolute paths, and the same with a choice of the merge."""
    preset: dict[str, Any] = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    preset["aligned_model"] = str(home.models / "aligned")
    preset["unaligned_model"] = str(home.models / "unaligned")
    if seed is not None:
        preset["task_training"]["seed"] = seed
    choice: dict[str, Any] = yaml.safe_load(CHOICE.read_text(encoding="utf-8"))
    for path, config in ((home.pipeline, preset), (home.tuned_pipeline, preset | choice)):
        laid_down = with_places_from(PipelineConfig, config, FOLDER)
        with atomic_file(path, replace=True) as partial:
            partial.write_text(
                yaml.safe_dump(laid_down, sort_keys=False, allow_unicode=True), encoding="utf-8"
            )
        load_pipeline(path)


def run_dag(
    home: DemoHome,
    console: Console,
    ledger: Ledger,
    environment: Mapping[str, str],
    params: Mapping[str, Any],
) -> dict[str, StepResult]:
    """Run the DAG by ``airflow dags test`` to its verdict, and return its steps by label.

    Raises:
        StepError: it ended without a verdict.
    """
    run_key = f"demo/{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    conf = json.dumps({**params, "run_key": run_key})
    log_file = home.logs / "dag.log"
    view = DagView(console, log_file)
    view.follow(["airflow", "dags", "test", DAG_ID, "--conf", conf], environment)
    config = load_pipeline(home.pipeline)
    run_id = ledger.find_pipeline_run(config.tracking.experiment, run_key)
    steps = ledger.results(run_id) if run_id else {}
    if "gate" not in steps:
        raise StepError(
            f"the DAG ended without a verdict: {view.error or 'see the log'}; its log: {log_file}"
        )
    return steps


def outlook(home: DemoHome, promotion: StepResult | None) -> list[str]:
    """What to open and type next."""
    shipped = (
        f"The repaired adapter is the champion: {promotion.outputs['model_version'].uri} in MLflow."
        if promotion
        else "Nothing was promoted: what the gate blocks does not ship."
    )
    return [
        shipped,
        "",
        "Look around:   make up     Airflow at http://127.0.0.1:8080, MLflow at http://127.0.0.1:5000",
        "Stop it:       make down",
        "Train anew:    make demo SEED=1     (keeps the aligned model and the safety adapter)",
        f"Its config:    {_relative(home.pipeline)}     logs: {_relative(home.logs)}",
        *_report_line(home.reports / RELEASE / RELEASE_PAGE_FILE),
        f"To try:        {_relative(home.adapters)} and {_relative(home.reports)}, as the README says",
    ]


def _fetch(home: DemoHome, ledger: Ledger, result: StepResult, output: str) -> Path:
    return ledger.fetch(result.outputs[output].uri, home.workspace.cache)


def _report_line(page: Path) -> list[str]:
    return [f"Its report:    {_relative(page)}     (opens from disk)"] if page.exists() else []


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
