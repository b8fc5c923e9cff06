"""The retraining pipeline: fine-tune, repair, evaluate, gate, release. Order and parameters only."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG, Param, TaskGroup

from safemerge.core import methods
from safemerge_airflow.device_lane import device_lane
from safemerge_airflow.operators import (
    CloseRunOperator,
    EvaluateOperator,
    GateOperator,
    OpenRunOperator,
    PromoteOperator,
    SafeMergeOperator,
    TrainAdapterOperator,
)

DOC = """
Fine-tunes a LoRA adapter, repairs it with **SafeMERGE**, evaluates it beside the aligned model, the
unrepaired adapter and two controls, and gates it.

- **Pass**: the adapter becomes a new version in the MLflow Model Registry and takes the alias `champion`.
- **Block**: the run fails at `gate` with the verdict as its message; `champion` stays. All is recorded.
- **Cannot tell** (where the policy says `on_cannot_tell: ask`): the run fails at `gate` too, and a person
  decides: with more prompts or another policy, start it again; only what changed is done anew.

Starting a run again repeats nothing that MLflow already holds for the same inputs. Each task has a
button to its MLflow run.
"""

MERGE = "Merge (empty: as in the config)"
RECORD = "Record"
RE_GATE = "Evaluate and gate an adapter again, without training"

PARAMS = {
    "config": Param(
        os.environ.get("SAFEMERGE_CONFIG"),
        type="string",
        minLength=1,
        title="Pipeline config",
        description="Path of the pipeline's YAML file, as the workers see it.",
    ),
    "method": Param(
        None,
        type=["null", "string"],
        enum=[None, *methods.names()],
        title="Method",
        description="How the merged adapter is made of the two.",
        section=MERGE,
    ),
    "threshold": Param(
        None,
        type=["null", "number"],
        title="Threshold",
        description="Layers with a cosine below it are merged. Give this or the quantile.",
        section=MERGE,
    ),
    "quantile": Param(
        None,
        type=["null", "number"],
        minimum=0,
        maximum=1,
        title="Quantile",
        description="Share of the layers to merge, those with the lowest cosines.",
        section=MERGE,
    ),
    "task_weight": Param(
        None,
        type=["null", "number"],
        title="Task weight",
        description="Weight of the task adapter in merged layers. One given makes the other 1 minus it.",
        section=MERGE,
    ),
    "safety_weight": Param(
        None,
        type=["null", "number"],
        title="Safety weight",
        description="Weight of the safety adapter in merged layers.",
        section=MERGE,
    ),
    "adapter": Param(
        None,
        type=["null", "string"],
        title="Adapter",
        description="A folder, runs:/<run id>/<path> or models:/<name>@champion.",
        section=RE_GATE,
    ),
    "fine_tuned_adapter": Param(
        None,
        type=["null", "string"],
        title="Unrepaired adapter",
        description="The adapter that it came from, where the gate is to judge the gain kept.",
        section=RE_GATE,
    ),
    "promote": Param(
        True,
        type="boolean",
        title="Promote",
        description="Whether an adapter that passes the gate becomes the champion.",
        section=RECORD,
    ),
    "run_key": Param(
        None,
        type=["null", "string"],
        title="Run key",
        description="Name under which MLflow finds this run again; DAG id and run id where empty.",
        section=RECORD,
    ),
}

with DAG(
    dag_id="safemerge_pipeline",
    description="Fine-tune, repair with SafeMERGE, evaluate, gate, release",
    doc_md=DOC,
    schedule=os.environ.get("SAFEMERGE_SCHEDULE") or None,
    catchup=False,
    max_active_runs=1,
    # Without a lane for devices, one task at a time keeps two steps off the same device.
    max_active_tasks=16 if device_lane() else 1,
    params=PARAMS,
    default_args={"owner": "safemerge", "retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["safemerge", "safety", "lora"],
) as dag:
    open_run = OpenRunOperator(
        task_id="open_run",
        config=dag.param("config"),
        overrides={
            "merge.method": dag.param("method"),
            "merge.threshold": dag.param("threshold"),
            "merge.quantile": dag.param("quantile"),
            "merge.task_weight": dag.param("task_weight"),
            "merge.safety_weight": dag.param("safety_weight"),
        },
        adapter=dag.param("adapter"),
        fine_tuned_adapter=dag.param("fine_tuned_adapter"),
        promote=dag.param("promote"),
        run_key=dag.param("run_key"),
    )
    run_id = open_run.output["run_id"]

    train_safety = TrainAdapterOperator(task_id="train_safety_adapter", run_id=run_id, role="safety")
    train_task = TrainAdapterOperator(task_id="train_task_adapter", run_id=run_id, role="task")

    # A task is skipped where an adapter was given; what follows it still runs.
    merge = SafeMergeOperator(
        task_id="safemerge",
        run_id=run_id,
        task_adapter=train_task.output["adapter"],
        safety_adapter=train_safety.output["adapter"],
        trigger_rule="none_failed",
    )

    with TaskGroup("evaluate", default_args={"trigger_rule": "none_failed"}) as evaluate:
        adapters = {
            "aligned": None,
            "fine_tuned": train_task.output["adapter"],
            "safemerge": merge.output["safemerge"],
            "scale": merge.output["scale"],
            "scale_selected": merge.output["scale_selected"],
        }
        reports = {
            arm: EvaluateOperator(task_id=arm, run_id=run_id, arm=arm, adapter=adapter).output["report"]
            for arm, adapter in adapters.items()
        }

    gate = GateOperator(
        task_id="gate",
        run_id=run_id,
        candidate=reports["safemerge"],
        aligned=reports["aligned"],
        fine_tuned=reports["fine_tuned"],
        adapter=merge.output["safemerge"],
        trigger_rule="none_failed",
    )
    promote = PromoteOperator(
        task_id="promote",
        run_id=run_id,
        adapter=merge.output["safemerge"],
        decision=gate.output["decision"],
        trigger_rule="none_failed",
    )
    close = CloseRunOperator(task_id="close_run", run_id=run_id)

    evaluate >> gate
    # A teardown task runs whatever came before, and leaves the run's state to the others.
    [train_safety, evaluate, promote] >> close.as_teardown()
