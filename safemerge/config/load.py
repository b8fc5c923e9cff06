"""Read configs from YAML: strictly, and with messages that say what to change.

A key that is unknown or written twice is refused. All that is wrong with a file is said
at once, each problem with its line, its full key, what was expected and what was got.
Relative paths count from the folder of the file that names them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safemerge.config.commands import Inputs, MergeFileConfig, SweepFileConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.places import Key, Place, model_for, model_source, places, with_places_from
from safemerge.config.problems import problem, shown
from safemerge.config.recipes import VERSION, RecipeConfig
from safemerge.config.suites import SuiteSpec
from safemerge.errors import ConfigError
from safemerge.gate import GatePolicy

RECIPE_SUFFIXES = (".yaml", ".yml")
"""How the files of a folder end that are recipes."""

Model = TypeVar("Model", bound=BaseModel)
FileConfig = TypeVar("FileConfig", bound=Inputs)

# The same in C, where PyYAML has it: a scheduler reads many recipes again and again.
_Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Safe):  # type: ignore[misc, valid-type]
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Say where a value stands that is none, such as a date that no calendar has."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


# `on`, `yes` and the like are text, as in YAML 1.2 and in editors: `on` is a key of ours.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_pipeline(path: Path, overrides: Mapping[str, Any] | None = None) -> PipelineConfig:
    """Read a pipeline's YAML file.

    Args:
        path: the file; a recipe is one, too.
        overrides: dotted key to value, such as ``{"merge.quantile": 0.5}``; list items by
            number, such as ``evaluation.suites.0.limit``.

    Returns:
        The config. Paths of data, suites, lm-eval tasks and models are absolute. A model called as one on
        the hub, ``org/name``, is a path where such a folder lies beside the file.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    return _read_recipe(path, overrides).pipeline()


def load_recipe(path: Path, *, any_name: bool = False) -> RecipeConfig:
    """Read a recipe: a pipeline's file that also says when it is due, and whose it is.

    Args:
        path: the file.
        any_name: whether the recipe may be called otherwise than its file. One that is a DAG may not, so
            that no two recipes of a folder are one DAG.

    Returns:
        The recipe, with paths as of :func:`load_pipeline`.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    recipe = _read_recipe(path)
    if any_name:
        return recipe
    if recipe.name != path.stem:
        raise ConfigError(f"{path}: name: expected {path.stem!r}, as the file is called, got {recipe.name!r}")
    twins = [path.with_suffix(suffix) for suffix in RECIPE_SUFFIXES]
    if twin := next((file for file in twins if file.name != path.name and file.exists()), None):
        raise ConfigError(f"{path}: expected one file for the recipe {recipe.name}, got {twin.name}, too")
    return recipe


def recipes_in(folder: Path) -> list[Path]:
    """The files of a folder that are recipes, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix in RECIPE_SUFFIXES)


def load_policy(path: Path) -> GatePolicy:
    """Read the gate's policy: a YAML file of its own, or the ``gate`` section of a pipeline's.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    data, lines = _read_yaml(path)
    prefix: Key = ()
    if "gate" in data:
        data, prefix = data["gate"], ("gate",)
    return _validated(GatePolicy, data, path, lines, prefix)


def has_gate_section(path: Path) -> bool:
    """Whether a policy's file is a pipeline's.

    Raises:
        ConfigError: the file cannot be read.
    """
    return "gate" in _read_yaml(path)[0]


def load_merge_file(path: Path, overrides: Mapping[str, Any] | None = None) -> MergeFileConfig:
    """Read the config file of ``safemerge merge``.

    Args:
        path: the file.
        overrides: as of :func:`load_pipeline`; paths in them count from the working directory.

    Returns:
        The settings. Paths in the file count from its folder. Adapters and models are absolute paths, or
        the hub's.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    return _read_command_file(MergeFileConfig, path, overrides)


def load_sweep_file(path: Path, overrides: Mapping[str, Any] | None = None) -> SweepFileConfig:
    """Read the config file of ``safemerge sweep``; the rest is as of :func:`load_merge_file`."""
    return _read_command_file(SweepFileConfig, path, overrides)


def sweep_of_flags(settings: Mapping[str, Any]) -> SweepFileConfig:
    """The settings of ``safemerge sweep`` without a file.

    Args:
        settings: dotted key to value, of flags alone.

    Raises:
        ConfigError: a value cannot be used; lists every problem.
    """
    data: dict[str, Any] = {}
    for key, value in settings.items():
        _override(data, key, value)
    return _validated(SweepFileConfig, data, Path("flags"), {})


def load_suite_spec(path: Path) -> SuiteSpec:
    """Read the YAML file of a suite.

    A relative ``file`` in it counts from its folder, and so does a ``dataset`` that lies there.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    data, lines = _read_yaml(path)
    return _validated(SuiteSpec, with_places_from(SuiteSpec, data, path.resolve().parent), path, lines)


def recipe_places(path: Path) -> dict[Key, tuple[str, Place]]:
    """Where a recipe's file says that things lie: key to value and kind of place.

    What an event of new data sets to such a key, under ``schedule``, is among them.

    Raises:
        ConfigError: the file cannot be read or used; lists every problem.
    """
    schedule = load_recipe(path, any_name=True).schedule
    data, _ = _read_yaml(path)
    found = {key: (value, place) for key, value, place in places(RecipeConfig, data)}
    for number, new in enumerate(schedule.data):
        for dotted, value in new.sets.items():
            key = tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))
            if key in found:
                found["schedule", "data", number, "sets", dotted] = value, _of_events(found[key][1])
    return found


def _of_events(place: Place) -> Place:
    """The mark where an event fills in the version: on the hub, unless one lies beside the file."""

    def seen_from(value: str, folder: Path) -> str:
        filled = value.replace(VERSION, "0")
        could_be_id = place.seen_from(filled, folder) == filled and not Path(value).is_absolute()
        is_id = could_be_id and not any(folder.glob(value.replace(VERSION, "*")))
        return value if is_id else place.seen_from(value, folder)

    return Place(seen_from)


def text_with(path: Path, values: Mapping[Key, str]) -> str:
    """The text of a YAML file, comments and all, with other texts as values of those keys that it has.

    Raises:
        ConfigError: an alias gives one text to keys that are to differ.
    """
    text = path.read_text(encoding="utf-8")
    # A node begins with its anchor, a token behind it.
    starts = {
        t.end_mark.index: t.start_mark.index for t in yaml.scan(text) if isinstance(t, yaml.ScalarToken)
    }
    parts = {}
    for key, _, node in _keys(_merged(text), (), set()):
        if key in values and isinstance(node, yaml.ScalarNode) and node.value != values[key]:
            start = starts[node.end_mark.index]
            # A block of lines ends behind the line break, and the blank lines, that come after it.
            end = start + len(text[start : node.end_mark.index].rstrip())
            parts[start] = end, _scalar(values[key])
    for start, (end, scalar) in sorted(parts.items(), reverse=True):
        text = text[:start] + scalar + text[end:]
    held = {key: node.value for key, _, node in _keys(_merged(text), (), set())}
    wrong = [
        f"{_dotted(key)}: expected a value of its own, as the copy's is {value!r}, "
        "got one that an alias repeats"
        for key, value in values.items()
        if held.get(key, value) != value
    ]
    if wrong:
        raise ConfigError(f"{path}: {'; '.join(wrong)}")
    return text


def _merged(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, with what ``<<`` merges in its place."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if root is not None:
        loader.construct_document(root)
    return root


def _scalar(value: str) -> str:
    """A text as YAML: plain where it reads back as it is, else quoted."""
    is_plain = re.fullmatch(r"[A-Za-z/][\w./@+-]*", value) and yaml.load(value, _Loader) == value  # noqa: S506
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _read_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> RecipeConfig:
    """A pipeline's file, with what a recipe may add; paths in overrides count from its folder, too."""
    data, lines = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(data, key, value)
    return _validated(RecipeConfig, with_places_from(RecipeConfig, data, path.resolve().parent), path, lines)


def _read_command_file(
    model: type[FileConfig], path: Path, overrides: Mapping[str, Any] | None
) -> FileConfig:
    """The file of a command; paths in overrides, which are its flags, count from the working directory."""
    data, lines = _read_yaml(path)
    data = with_places_from(model, data, path.resolve().parent)
    for key, value in (overrides or {}).items():
        typed = key in Inputs.model_fields and isinstance(value, str)
        _override(data, key, model_source(value, Path.cwd()) if typed else value)
    return _validated(model, data, path, lines)


# --- YAML ------------------------------------------------------------------------


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping that the file holds, and the line of every key in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"{path}: expected a YAML file, got {reason}") from error
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_once(node, path)
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: {where}not valid YAML: {problem}") from error
    if node is None or not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, got {shown(data)}")
    # By now a merged section holds what it merges, before its own keys, which win.
    return data, {key: named.start_mark.line + 1 for key, named, _ in _keys(node, (), set())}


def _check_once(node: yaml.Node | None, path: Path) -> None:
    """Refuse a key that is written twice; what ``<<`` merges may be written again."""
    lines: dict[Key, int] = {}
    for key, named, _ in _keys(node, (), set()):
        line = named.start_mark.line + 1
        if key in lines:
            again = f"expected the key once, got it again after line {lines[key]}"
            raise ConfigError(f"{path}: line {line}, {_dotted(key)}: {again}")
        lines[key] = line


def _keys(node: yaml.Node | None, at: Key, seen: set[int]) -> Iterator[tuple[Key, yaml.Node, yaml.Node]]:
    """Every key below a YAML node, its node and its value's; what is below an alias only once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        # A list or a mapping as a key is refused where the data are made.
        pairs = [(k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode)]
        children: list[tuple[str | int, yaml.Node, yaml.Node]] = [(k.value, k, v) for k, v in pairs]
    elif isinstance(node, yaml.SequenceNode):
        children = [(number, item, item) for number, item in enumerate(node.value)]
    else:
        return
    for name, named, value in children:
        yield (*at, name), named, value
        yield from _keys(value, (*at, name), seen)


def _override(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one key in raw data; sections that are missing are made."""
    place: Any = data
    *sections, last = dotted.split(".")
    for section in sections:
        slot = _slot(place, section, dotted)
        # A copy on the way down: an alias may have put the same section elsewhere too.
        held = place.get(slot) if isinstance(place, dict) else place[slot]
        place[slot] = {} if held is None else copy(held)
        place = place[slot]
    place[_slot(place, last, dotted)] = value


def _slot(place: Any, name: str, dotted: str) -> str | int:
    """What to index a section with, by one part of a dotted key."""
    if isinstance(place, dict):
        return name
    if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
        return int(name)
    raise ConfigError(f"override {dotted}: expected a key of the config, got none at {name}")


# --- validation --------------------------------------------------------------------


def _validated(
    model: type[Model], data: Any, path: Path, lines: Mapping[Key, int], prefix: Key = ()
) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = _problems(model, data, error)
    said = []
    for key, what in problems.items():
        full = prefix + key
        line = next((lines[full[:size]] for size in range(len(full), 0, -1) if full[:size] in lines), None)
        place = ", ".join(part for part in (line and f"line {line}", _dotted(full)) if part)
        said.append(f"{place}: {what}" if place else what)
    count = "" if len(said) == 1 else f"{len(said)} problems: "
    raise ConfigError(f"{path}: {count}{'; '.join(said)}")


def _problems(model: type[BaseModel], data: Any, error: ValidationError) -> dict[Key, str]:
    """One problem a key. Of a union's members, the ones that looked deepest into the data count."""
    found: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors():
        found.setdefault(_key_in(data, detail), []).append(detail)
    deepest = {
        key: details
        for key, details in found.items()
        if not any(other != key and other[: len(key)] == key for other in found)
    }
    unknown = [key for key, details in deepest.items() if details[0]["type"] == "extra_forbidden"]
    mistyped = {(*key[:-1], near) for key in unknown for near in _near(_names_at(model, data, key), key)}
    return {
        key: _problem(model, data, key, details)
        for key, details in deepest.items()
        if details[0]["type"] != "missing" or key not in mistyped
    }


def _key_in(data: Any, detail: ErrorDetails) -> Key:
    """The error's place as a key of the data: without the names of union members that pydantic adds."""
    key: list[str | int] = []
    for part in detail["loc"]:
        in_dict = isinstance(data, dict) and part in data
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_dict or in_list:
            data = data[part]
            key.append(part)
    if detail["type"] == "missing":
        key.append(detail["loc"][-1])
    return tuple(key)


def _problem(model: type[BaseModel], data: Any, key: Key, details: list[ErrorDetails]) -> str:
    kind = details[0]["type"]
    if kind == "extra_forbidden":
        names = _names_at(model, data, key)
        near = _near(names, key)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        return f"unknown key; {hint}"
    if kind == "missing":
        return "expected a value, got nothing"
    return problem(details)


def _names_at(model: type[BaseModel], data: Any, key: Key) -> list[str]:
    """Keys that may stand where one stands."""
    return sorted(_model_at(model, data, key[:-1]).model_fields)


def _near(names: list[str], key: Key) -> list[str]:
    """The name that a mistyped key may have meant, if any."""
    return difflib.get_close_matches(str(key[-1]), names, n=1)


def _model_at(model: type[BaseModel], data: Any, key: Key) -> type[BaseModel]:
    """The config model that a key leads to; of several, the one that the data name by their ``kind``."""
    kind: Any = model
    for part in key:
        data = data[part]
        if isinstance(part, str):
            kind = model.model_fields[part].annotation
        model = model_for(kind, data) or model
    return model


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)
