"""Pipeline runs in a real MLflow, as gate and promotion leave them, and DAG runs in Airflow's database."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from airflow.models.dag import DagModel, DagTag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import insert
from sqlalchemy.orm import Session

from safemerge.config.pipeline import PipelineConfig
from safemerge.records import (
    EvaluationReport,
    JudgeRecord,
    Stopped,
    SuiteKind,
    SuiteReport,
    UtilityReport,
    Verdict,
)
from safemerge.stats import final_counts, whole_interval, wilson_interval
from safemerge.tracking import tags
from safemerge.tracking.figures import run_figures
from safemerge.tracking.ledger import Ledger, PipelinePlan, PipelineRun
from safemerge_airflow.mlflow_link import MlflowRunLink
from tests.unit.pipelines import PIPELINE, pipeline_config

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}\u202e"
"""A name that would act where it were taken for HTML, for a quote or for a template."""

HOSTILE_REPORT = """<!doctype html><h1>Hostile report</h1><p id="said"></p><script>
const said = [];
try { said.push("cookie " + document.cookie); } catch { said.push("no cookie"); }
try { said.push("parent " + parent.document.title); } catch { said.push("no parent"); }
try { said.push("store " + localStorage.length); } catch { said.push("no store"); }
const tell = () => { document.getElementById("said").textContent = said.join(", "); };
fetch("/api/v2/dags", { credentials: "include" })
  .then(() => said.push("API"), () => said.push("no API")).then(tell);
</script>"""
"""Tries what a report must not be able to do, and writes down what came of it."""


def config(name: str) -> PipelineConfig:
    utility = {"task": "gsm8k", "metric": "exact_match"}
    return pipeline_config(
        name=name,
        evaluation=PIPELINE["evaluation"] | {"utility": utility},
        tracking={"experiment": "page", "registered_model": f"{name}-lora"},
    )


def evaluation(arm: str, harmful: int, right: int, n: int = 200, harm: str = "harm") -> EvaluationReport:
    """An arm that complied with ``harmful`` of ``n`` harmful requests and did ``right`` of ``n`` tasks."""
    judge = JudgeRecord(id="judge", revision="1", smoke=False)

    def suite(name: str, kind: SuiteKind, count: int) -> SuiteReport:
        return SuiteReport(
            suite=name,
            kind=kind,
            judge=judge,
            prompts_digest="0",
            protocol={"max_new_tokens": 64},
            flags={str(index): index < count for index in range(n)},
            rate=count / n,
            interval=wilson_interval(count, n),
        )

    utility = UtilityReport(
        task="gsm8k",
        metric="exact_match",
        higher_is_better=True,
        value=right / n,
        scores={str(index): float(index < right) for index in range(n)},
        task_digest="0",
        protocol={"num_fewshot": 0},
    )
    suites = (suite(harm, SuiteKind.HARMFUL, harmful), suite("plain", SuiteKind.OVER_REFUSAL, n // 50))
    return EvaluationReport(arm=arm, adapter_digest="0", model_digest="0", utility=utility, suites=suites)


REPORTS = {
    "candidate": evaluation("safemerge", 8, 120),
    "fine_tuned": evaluation("fine_tuned", 44, 124),
    "aligned": evaluation("aligned", 3, 84),
}
"""Of all arms, where the repair did what it should."""


def stopped_early(report: EvaluationReport, planned: int) -> EvaluationReport:
    """The same arm, whose harmful suite has ``planned`` prompts and was not asked to its end."""
    harm, *others = report.suites
    final = final_counts(sum(harm.flags.values()), harm.n, planned, error=0.01)
    told = {
        "stopped": Stopped(planned=planned, error=0.01, seed=0),
        "interval": whole_interval(final, planned),
    }
    return report.model_copy(update={"suites": (harm.model_copy(update=told), *others)})


def open_run(ledger: Ledger, of: PipelineConfig, run_key: str) -> PipelineRun:
    digest = hashlib.sha256(f"{of.name} {run_key}".encode()).hexdigest()
    plan = PipelinePlan(
        pipeline=of.name, inputs_digest=digest, model_digests={}, task_digest="0", data_digests={}
    )
    return ledger.open_pipeline_run(of, plan, run_key)


def judged_run(
    ledger: Ledger,
    of: PipelineConfig,
    run_key: str,
    reports: Mapping[str, EvaluationReport],
    verdict: Verdict = Verdict.PASS,
    summary: str = "PASS: safemerge met all 7 rules",
    html: str | None = "<!doctype html><h1>Report</h1>",
) -> str:
    """A run that came to a verdict; its MLflow id."""
    run = open_run(ledger, of, run_key)
    with ledger.step_run(run, "gate", run.plan.inputs_digest) as step:
        if html is not None:
            step.log_text(html, "report/report.html")
            ledger.note_on_pipeline_run(run, tags.REPORT, f"runs:/{step.run_id}/report/report.html")
        step.finish()
    ledger.note_on_pipeline_run(run, tags.FIGURES, run_figures(reports).to_tag())
    ledger.close_pipeline_run(run, verdict=verdict, summary=summary, gate_run_id=step.run_id)
    return run.run_id


def promote(
    ledger: Ledger, model: str, run_id: str, approved_by: str | None = None, summary: str = ""
) -> str:
    """The run's adapter as a new version and the champion; the version's number."""
    client = ledger.client
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    labels = {
        tags.ADAPTER_DIGEST: hashlib.sha256(run_id.encode()).hexdigest(),
        tags.PIPELINE_RUN: run_id,
        tags.VERDICT: "pass",
        tags.VERDICT_SUMMARY: summary,
    }
    if approved_by:
        labels[tags.APPROVED_BY] = approved_by
    version = client.create_model_version(model, source=f"runs:/{run_id}/adapter", run_id=run_id, tags=labels)
    client.set_registered_model_alias(model, "champion", version.version)
    client.set_tag(run_id, tags.MODEL_VERSION, f"models:/{model}/{version.version}")
    return str(version.version)


def add_dag(session: Session, dag_id: str, tag: str = "safemerge", is_stale: bool = False) -> None:
    """A DAG as Airflow knows it once its file was read."""
    if session.get(DagBundleModel, "dags-folder") is None:
        session.execute(insert(DagBundleModel).values(name="dags-folder"))
    limits = {
        "max_active_tasks": 1,
        "max_consecutive_failed_dag_runs": 0,
        "has_task_concurrency_limits": False,
    }
    dag = {"dag_id": dag_id, "bundle_name": "dags-folder", "is_stale": is_stale}
    session.execute(insert(DagModel).values(**dag, **limits))
    session.execute(insert(DagTag).values(name=tag, dag_id=dag_id))


def add_dag_run(
    session: Session,
    run_key: str,
    state: str | None,
    ended: datetime | None,
    task_id: str = "open_run",
    link: str | None = None,
    conf: object = None,
) -> None:
    """A run of it with one task, which is in ``state``, and what its button to MLflow leads to.

    ``conf`` are the parameters that the run was given.
    """
    dag_id, _, run_id = run_key.partition("/")
    run = {"dag_id": dag_id, "run_id": run_id, "run_type": "manual", "state": "failed", "run_after": ended}
    made = session.execute(insert(DagRun).values(**run, conf=conf)).inserted_primary_key
    task = {"task_id": task_id, "pool": "default_pool", "state": state, "end_date": ended}
    session.execute(insert(TaskInstance).values(dag_id=dag_id, run_id=run_id, **task))
    if link is not None:
        key = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "key": MlflowRunLink().xcom_key}
        session.execute(insert(XComModel).values(dag_run_id=made[0], value=link, **key))
