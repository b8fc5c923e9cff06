"""The DAG of one recipe."""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG

from safemerge.config.load import load_recipe
from safemerge.config.recipes import RecipeConfig
from safemerge.errors import ConfigError
from safemerge.tracking.champions import champion_of
from safemerge_airflow import TAG
from safemerge_airflow.assets import schedule_of
from safemerge_airflow.messages import check_notifiers
from safemerge_airflow.pipeline_dag import DOC, pipeline_dag

ANY_CONFIG = "safemerge_pipeline"
"""The DAG that takes any config; no recipe may be called so."""


def recipe_dag(path: str | Path) -> DAG:
    """Read a recipe and make its DAG, whose id is the recipe's name.

    Args:
        path: the recipe's YAML file, as schedulers and workers see it.

    Raises:
        ConfigError: the file cannot be read or used; the scheduler shows it as the file's import error.
    """
    try:
        recipe = load_recipe(Path(path))
        check_notifiers(recipe.notifications, str(path))
        if recipe.name == ANY_CONFIG:
            raise ConfigError(f"{path}: name: expected another name than that of the DAG for any config")
    except ConfigError as error:
        raise ConfigError(str(error)) from None  # the cause would bury the message in the web page
    dag = pipeline_dag(
        recipe.name,
        str(path),
        recipe,
        schedule=schedule_of(recipe.schedule),
        tags=[TAG, *recipe.tags],
        doc_md=f"{_summary(recipe, path)}\n{DOC}",
        **({"description": recipe.description} if recipe.description else {}),
    )
    for task in dag.tasks:
        task.owner = ", ".join(recipe.owners)
    return dag


def _summary(recipe: RecipeConfig, path: str | Path) -> str:
    rows = {
        "aligned model": recipe.aligned_model,
        "unaligned model": recipe.unaligned_model,
        "task data": ", ".join(source.path for source in recipe.task_training.data),
        "utility": f"{recipe.evaluation.utility.task}, {recipe.evaluation.utility.metric}",
        "released as": f"models:/{champion_of(recipe.tracking.registered_model)}",
        "recipe": path,
    }
    return "\n".join(("| | |", "| --- | --- |", *(f"| {name} | `{value}` |" for name, value in rows.items())))
