"""The retraining DAG: order and parameters of its tasks, for one recipe or for any config.

:func:`pipeline_dag` makes one. Each group of tasks is a function that takes what it needs and
gives what later groups need; to add tasks, write such a function and call it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from airflow.sdk import DAG, Param, TaskGroup

from safemerge.arms import ALIGNED, FINE_TUNED, SAFEMERGE, SCALE, SCALE_SELECTED
from safemerge.config.people import ApprovalConfig
from safemerge.config.recipes import RecipeConfig
from safemerge.core import methods
from safemerge_airflow import OPEN_RUN_TASK, TAG
from safemerge_airflow.assets import champion_asset, data_assets
from safemerge_airflow.device_lane import device_lane
from safemerge_airflow.messages import SIGN_OFF_TASK, FailureMessage
from safemerge_airflow.operators import (
    CloseRunOperator,
    EvaluateOperator,
    GateOperator,
    OpenRunOperator,
    PromoteOperator,
    SafeMergeOperator,
    TrainAdapterOperator,
)
from safemerge_airflow.sign_off import SignOffOperator
from safemerge_airflow.tune_operators import (
    PROPOSAL,
    AdvanceOperator,
    ChooseOperator,
    LearnOperator,
    ProposeOperator,
    TuneBranchOperator,
    TuneEvaluateOperator,
)

DOC = """
Fine-tunes a LoRA adapter, repairs it with **SafeMERGE**, evaluates it beside the aligned model, the
unrepaired adapter and two controls, and gates it.

Where the config has a section `tuning`, the merge is first chosen among candidates on its development split:
those that cannot win are dropped round by round, and the run fails at `choose` where none keeps the limits.
With `tuning.learning`, weights of every layer are fitted to the training data first, and are candidates, too.
A run that is given any parameter of the merge makes that merge: it learns nothing and chooses nothing.

- **Pass**: the adapter becomes a new version in the MLflow Model Registry and takes the alias `champion`.
- **Block**: the run fails at `gate` with the verdict as its message; `champion` stays. All is recorded.
- **Cannot tell** (where the policy says `on_cannot_tell: ask`), or a pass where it says `sign_off: required`:
  `sign_off` waits for a person, who approves with a reason or rejects. The answer is on the model version or
  the run. Without one in time, or without a reason, the run fails at `promote` and nothing is released. To be
  asked again, clear `sign_off`.

Starting a run again repeats nothing that MLflow already holds for the same inputs. Each task has a
button to its MLflow run.
"""

MERGE = "Merge (empty: as in the config; any of these switches its tuning off)"
RECORD = "Record"
DATA = "Data (empty: the version announced last, else as in the recipe)"
RE_GATE = "Evaluate and gate an adapter again, without training"
NOT_FAILED = "none_failed_min_one_success"
"""A task is skipped where an adapter was given; what follows it still runs. All follow ``open_run``: where it
is skipped, so is everything."""
ROUNDS = ("utility", "first", "second", "last")
"""Rounds of the choice of a merge: as many as a config can ask for. Those that it does not are skipped."""


class Made(NamedTuple):
    """What training and merging give, as other tasks read it: an operator's ``output[name]``."""

    run_id: Any
    """MLflow run of the pipeline run."""
    fine_tuned: Any
    safety: Any
    safemerge: Any
    """The candidate."""
    controls: Mapping[str, Any]
    """Adapters to compare it with, by the arm's name."""


def pipeline_dag(dag_id: str, config: str | None, recipe: RecipeConfig | None = None, **settings: Any) -> DAG:
    """The DAG of a pipeline.

    Args:
        dag_id: its id.
        config: path of the pipeline's YAML file, as workers see it.
        recipe: what the file holds, where the DAG stands for it. Without it runs are told which file to
            take, and ``config`` is what they take where nobody says.
        settings: arguments of :class:`airflow.sdk.DAG` beyond and before those set here.
    """
    defaults: dict[str, Any] = {
        "description": "Fine-tune, repair with SafeMERGE, evaluate, gate, release",
        "doc_md": DOC,
        "schedule": None,
        "catchup": False,
        "max_active_runs": 1,
        # Without a lane for devices, one task at a time keeps two steps off the same device.
        "max_active_tasks": 16 if device_lane() else 1,
        "default_args": {"owner": "safemerge", "retries": 2, "retry_delay": timedelta(seconds=30)},
        "tags": [TAG, "safety", "lora"],
    }
    if recipe and recipe.notifications:
        defaults["default_args"]["on_failure_callback"] = FailureMessage(recipe.notifications)
    with DAG(dag_id=dag_id, **defaults | settings) as dag:
        opened = open_run(dag, config if recipe else dag.param("config"), recipe).output
        run_id = opened["run_id"]
        made = train_and_merge(run_id, opened["tuning"], opened["learning"])
        reports = evaluate(made)
        gate_and_promote(made, reports, recipe)
        close_run(dag, run_id)
    # Given to the DAG beforehand, they would be copied once for each task, and as a whole they would be
    # checked, which takes a third of the parsing: their defaults are ours.
    dag.params.update(run_params(force=False) | data_params(recipe) if recipe else any_config_params(config))
    return dag


# --- tasks -------------------------------------------------------------------------


def open_run(dag: DAG, config: Any, recipe: RecipeConfig | None) -> OpenRunOperator:
    """Checks everything and opens the pipeline run, with the run's parameters."""
    data = recipe.schedule.data if recipe else ()
    return OpenRunOperator(
        task_id=OPEN_RUN_TASK,
        config=config,
        data=data,
        versions={item.asset: dag.param(version_param(item.asset)) for item in data if item.sets},
        inlets=data_assets(data),
        overrides={f"merge.{name}": dag.param(name) for name in merge_params()},
        adapter=dag.param("adapter"),
        fine_tuned_adapter=dag.param("fine_tuned_adapter"),
        promote=dag.param("promote"),
        force=dag.param("force"),
        run_key=dag.param("run_key"),
    )


def train_and_merge(run_id: Any, tuning: Any, learning: Any) -> Made:
    """Trains both adapters and merges them; whether the run has tuning and learning is known beforehand."""
    train_safety = TrainAdapterOperator(task_id="train_safety_adapter", run_id=run_id, role="safety")
    train_task = TrainAdapterOperator(task_id="train_task_adapter", run_id=run_id, role="task")
    safety, fine_tuned = train_safety.output["adapter"], train_task.output["adapter"]
    adapters = {"task_adapter": fine_tuned, "safety_adapter": safety}
    chosen = tune(run_id, adapters, tuning, learning)
    merge = SafeMergeOperator(
        task_id="safemerge",
        run_id=run_id,
        trigger_rule=NOT_FAILED,
        **adapters,
        **chosen,
    )
    controls = {name: merge.output[name] for name in (SCALE, SCALE_SELECTED)}
    return Made(run_id, fine_tuned, safety, merge.output[SAFEMERGE], controls)


def tune(run_id: Any, adapters: Mapping[str, Any], tuning: Any, learning: Any) -> dict[str, Any]:
    """Chooses the merge on the development split, where the config has one; gives the choice."""
    with TaskGroup("tune"):
        learn = LearnOperator(task_id="learn", run_id=run_id, **adapters)
        propose = ProposeOperator(
            task_id="propose",
            run_id=run_id,
            coefficients=learn.output["coefficients"],
            trigger_rule=NOT_FAILED,
            **adapters,
        )
        branch = TuneBranchOperator(
            task_id="branch", tuning=tuning, learning=learning, propose=propose.task_id, learn=learn.task_id
        )
        branch >> [learn, propose]
        race = {"run_id": propose.output["pipeline_run"], "proposal": propose.output[PROPOSAL]}
        going_on: Any = propose.output
        reports: list[Any] = []
        for number, name in enumerate(ROUNDS):
            if number > 0:
                end = AdvanceOperator(
                    task_id=f"before_{name}",
                    round=number,
                    reports=list(reports),
                    trigger_rule=NOT_FAILED,
                    **race,
                )
                going_on = end.output
            measured = TuneEvaluateOperator.partial(
                task_id=name,
                run_id=race["run_id"],
                round=number,
                map_index_template="{{ task.candidate }}",
                **device_lane(),
            ).expand_kwargs(going_on)
            reports.append(measured.output)
        choose = ChooseOperator(task_id="choose", reports=reports, trigger_rule=NOT_FAILED, **race)
    return {name: choose.output[name] for name in ("choice", "coefficients")}


def evaluate(made: Made) -> Mapping[str, Any]:
    """Measures every arm; gives their reports by the arm's name."""
    adapters = {
        ALIGNED: None,
        FINE_TUNED: made.fine_tuned,
        SAFEMERGE: made.safemerge,
        **made.controls,
    }
    with TaskGroup("evaluate", default_args={"trigger_rule": NOT_FAILED}):
        return {
            arm: EvaluateOperator(task_id=arm, run_id=made.run_id, arm=arm, adapter=adapter).output["report"]
            for arm, adapter in adapters.items()
        }


def gate_and_promote(made: Made, reports: Mapping[str, Any], recipe: RecipeConfig | None) -> None:
    """Judges the candidate and releases it where it passes, or a person lets it through.

    That is an event of the champion's asset.
    """
    notifications = recipe.notifications if recipe else ()
    gate = GateOperator(
        task_id="gate",
        run_id=made.run_id,
        candidate=reports[SAFEMERGE],
        aligned=reports[ALIGNED],
        fine_tuned=reports[FINE_TUNED],
        adapter=made.safemerge,
        notifications=notifications,
        trigger_rule=NOT_FAILED,
    )
    # The controls are no input of the gate: it waits for them so that all is measured when it speaks.
    [report.operator for report in reports.values()] >> gate
    signed = SignOffOperator(
        task_id=SIGN_OFF_TASK,
        run_id=made.run_id,
        adapter=made.safemerge,
        decision=gate.output["decision"],
        wanted=gate.output["ask"],
        approval=recipe.approval if recipe else ApprovalConfig(),
        trigger_rule=NOT_FAILED,
    )
    PromoteOperator(
        task_id="promote",
        run_id=made.run_id,
        adapter=made.safemerge,
        decision=gate.output["decision"],
        answer=signed.output["answer"],
        champion=champion_asset(recipe) if recipe else None,
        notifications=notifications,
        trigger_rule=NOT_FAILED,
        # Across all runs: cleared ones and backfills do not heed max_active_runs.
        max_active_tis_per_dag=1,
    )


def close_run(dag: DAG, run_id: Any) -> None:
    """Ends the record of the run after all other tasks, whatever became of them; to be called last."""
    # A branch skips all that follows it at once but for what it chose; it has followers of its own here.
    before = [task for task in dag.tasks if not isinstance(task, TuneBranchOperator)]
    # A teardown leaves the run's state to the others.
    before >> CloseRunOperator(task_id="close_run", run_id=run_id).as_teardown()


# --- parameters of a run -----------------------------------------------------------


def any_config_params(config: str | None) -> dict[str, Param]:
    """Parameters of a DAG that serves any file."""
    return {
        "config": Param(
            config,
            type="string",
            minLength=1,
            title="Pipeline config",
            description="Path of the pipeline's YAML file, as the workers see it.",
        )
    } | run_params(force=True)


def version_param(asset: str) -> str:
    """Name of the parameter for a data set's version."""
    return f"version of {asset}"


def data_params(recipe: RecipeConfig) -> dict[str, Param]:
    """Versions of the data that a run may be told."""
    return {
        version_param(item.asset): Param(
            None,
            type=["null", "string"],
            title=f"Version of {item.asset}",
            description=f"Replaces {', '.join(item.sets)} of the recipe.",
            section=DATA,
        )
        for item in recipe.schedule.data
        if item.sets
    }


def merge_params() -> dict[str, Param]:
    """Settings of the merge that a run may change: their names are those in the config's ``merge``."""
    return {
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
    }


def run_params(force: bool) -> dict[str, Param]:
    """What a run of any pipeline may be asked for; ``force`` where nobody says."""
    return merge_params() | {
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
        "force": Param(
            force,
            type="boolean",
            title="Run even if nothing changed",
            description="Otherwise a run is skipped whose inputs are those that the champion came of.",
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
