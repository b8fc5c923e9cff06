"""Folders of recipes: the shipped ones, new ones made of them, and what is wrong with any."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from safemerge.config.load import load_recipe, recipe_places, recipes_in, text_with
from safemerge.config.places import Key, Place
from safemerge.config.recipes import RecipeConfig
from safemerge.errors import ConfigError
from safemerge.pipeline.offline import offline_problems
from safemerge.storage.atomic import atomic_file, check_absent

PACKAGE = Path(__file__).resolve().parents[1]
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class ReadRecipe(NamedTuple):
    """A recipe's file, what it holds, and what is wrong with it."""

    path: Path
    recipe: RecipeConfig | None
    """None where the file cannot be used."""
    problems: list[str]


def shipped_recipes() -> dict[str, Path]:
    """Name to file of the recipes that come with safemerge, the demo's first."""
    files = sorted((PACKAGE / "recipes").glob("*.yaml"))
    return {"demo": PACKAGE / "demo" / "pipeline.yaml"} | {file.stem: file for file in files}


def recipe_files(places: Iterable[Path]) -> list[Path]:
    """The recipes in files and folders, each folder's by name.

    Raises:
        ConfigError: there is no such place, or no recipe in it.
    """
    found: list[Path] = []
    for place in places:
        files = recipes_in(place) if place.is_dir() else [place]
        if not files:
            raise ConfigError(f"{place}: expected recipes, files that end in .yaml or .yml, got none")
        found += files
    return found


def read_recipes(files: Iterable[Path], *, offline: bool = True, tasks: bool = False) -> list[ReadRecipe]:
    """Read recipes, and find all that is wrong with them that can be found without network.

    Args:
        files: the recipes. A shipped one may be called otherwise than its file.
        offline: False looks at the files alone, and not at the data and models that they name.
        tasks: whether lm-eval is asked for the tasks that they name; see :func:`offline_problems`.
    """
    read = []
    shipped = shipped_recipes().values()
    for file in files:
        try:
            recipe = load_recipe(file, any_name=file in shipped)
        except ConfigError as error:
            read.append(ReadRecipe(file, None, [str(error).removeprefix(f"{file}: ")]))
            continue
        read.append(ReadRecipe(file, recipe, offline_problems(recipe, tasks=tasks) if offline else []))
    by_model: dict[str, list[ReadRecipe]] = defaultdict(list)
    for one in read:
        if one.recipe:
            by_model[one.recipe.tracking.registered_model].append(one)
    for model, ones in by_model.items():
        for one in ones if len(ones) > 1 else ():
            others = ", ".join(other.path.name for other in ones if other is not one)
            one.problems.append(
                f"tracking.registered_model: expected a model of its own, got {model}, as {others}"
            )
    return read


def new_recipe(name: str, source: str, folder: Path) -> Path:
    """Write a recipe that begins as a copy of another, comments and all, under a name of its own.

    Args:
        name: of the recipe, its file, its experiment and its registered model.
        source: name of a shipped recipe, or a recipe's file.
        folder: where to write ``<name>.yaml``.

    Returns:
        The file.

    Raises:
        ConfigError: the name or the source cannot be used.
        OutputExistsError: there is such a file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: expected letters, digits and . _ -, got {name!r}")
    given = _source(source)
    output = folder / f"{name}.yaml"
    check_absent(output)
    places = recipe_places(given)
    values: dict[Key, str] = {("name",): name}
    values |= {("tracking", key): name for key in ("experiment", "registered_model")}
    if folder.resolve() != given.resolve().parent:
        values |= {key: _seen_from(given, *found) for key, found in places.items()}
    text = text_with(given, values)
    with atomic_file(output) as partial:
        partial.write_text(text, encoding="utf-8")
    return output


def _seen_from(source: Path, value: str, place: Place) -> str:
    """The same place, from everywhere; what a shipped recipe does not bring is still to be filled in.

    Links and ``~`` stay: where they lead is another matter tomorrow, and for another user.
    """
    folder = source.resolve().parent
    is_to_do = folder.is_relative_to(PACKAGE) and not (folder / value).exists()
    seen = place.seen_from(value, folder)
    if is_to_do or seen == value or Path(value).is_absolute() or value.startswith("~"):
        return value
    named = (folder if source.is_symlink() else source.absolute().parent) / value
    plain = os.path.normpath(named)
    # Behind a link, `..` is the folder above where the link leads, and cannot be left out.
    return plain if os.path.realpath(plain) == seen else str(named)


def _source(source: str) -> Path:
    shipped = shipped_recipes()
    if source in shipped:
        return shipped[source]
    if Path(source).is_file():
        return Path(source)
    near = difflib.get_close_matches(source, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected a file or one of {', '.join(shipped)}"
    raise ConfigError(f"recipe {source}: no such file, and none of that name is shipped; {hint}")
