"""A folder of recipes as a bundle of DAGs: each YAML file in it is one DAG.

Airflow's DAG processor looks for Python files alone, and a file that fails loses all DAGs in it. So the
bundle keeps one small DAG file for every recipe, in Airflow's own storage for bundles, and a recipe that
cannot be read is the import error of its own file.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.base import BaseDagBundle

from safemerge.config.load import recipes_in
from safemerge.errors import ConfigError
from safemerge.storage.atomic import atomic_file

DAG_FILE = """\
# The DAG of a recipe: edit that and not this file, which is made of it.
from safemerge_airflow.recipe_dag import recipe_dag

dag = recipe_dag({path!r})

{recipe}
"""


LONGEST_NAME = 230
"""Bytes of a recipe's file name beyond which its DAG file is called otherwise: disks hold 255."""


class RecipeBundle(BaseDagBundle):
    """The DAGs of the recipes in a folder.

    In ``[dag_processor] dag_bundle_config_list``, beside the bundle of the DAGs folder::

        {"name": "recipes", "classpath": "safemerge_airflow.recipe_bundle.RecipeBundle",
         "kwargs": {"recipes": "/etc/safemerge/recipes", "refresh_interval": 30}}

    Args:
        recipes: the folder; at the same path on every worker. Its ``*.yaml`` and ``*.yml`` files are the
            recipes.
        kwargs: as every bundle takes them.
    """

    supports_versioning = False

    def __init__(self, *, recipes: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipes = Path(recipes)

    @property
    def path(self) -> Path:
        """Where the DAG files are."""
        return Path(self.base_dir) / "dags"

    def get_current_version(self) -> None:
        """A folder has no versions."""
        return

    def initialize(self) -> None:
        """Make the DAG files, on a scheduler as on a worker."""
        self.refresh()
        super().initialize()

    def refresh(self) -> None:
        """Write the DAG files of recipes that are new or changed, and delete those of recipes that are gone.

        Raises:
            ConfigError: there is no such folder.
        """
        if not self.recipes.is_dir():
            raise ConfigError(f"recipes of bundle {self.name}: expected a folder, got none at {self.recipes}")
        self.path.mkdir(parents=True, exist_ok=True)
        files = {_file_name(recipe): _dag_file(recipe) for recipe in recipes_in(self.recipes)}
        for name, text in files.items():
            if not (self.path / name).exists() or (self.path / name).read_text(encoding="utf-8") != text:
                with atomic_file(self.path / name, replace=True) as partial:
                    partial.write_text(text, encoding="utf-8")
        for old in self.path.glob("*.y*ml.py"):
            if old.name not in files:
                old.unlink(missing_ok=True)


def _file_name(recipe: Path) -> str:
    """As the recipe's, unless no disk could hold that: one name too long would stop the whole bundle."""
    name = os.fsencode(recipe.name)
    if len(name) <= LONGEST_NAME:
        return f"{recipe.name}.py"
    return f"{sha256(name).hexdigest()}{recipe.suffix}.py"


def _dag_file(recipe: Path) -> str:
    """The recipe's text stands in it as a comment: Airflow shows a DAG's file, and keeps its versions."""
    try:
        lines = recipe.read_text(encoding="utf-8", errors="replace").replace("\0", "�").splitlines()
    except OSError as error:  # the import error of this recipe, and of no other
        lines = str(error).splitlines()
    return DAG_FILE.format(path=str(recipe), recipe="\n".join(f"# {line}".rstrip() for line in lines))
