"""Read configs from YAML: strictly, and with messages that say what to change.

A key that is unknown or written twice is refused. All that is wrong with a file is said
at once, each problem with its line, its full key, what was expected and what was got.
Relative paths count from the folder of the file that names them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from safemerge.config.base import DATASET_ID, HUB_ID, MLFLOW_ADDRESSES
from safemerge.config.commands import Inputs, MergeFileConfig, SweepFileConfig
from safemerge.config.evaluation import SuiteConfig, UtilityConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.judges import LocalGuardConfig
from safemerge.config.merge import MergeConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.recipes import RecipeConfig
from safemerge.config.suites import SuiteSpec
from safemerge.config.training import DataSource
from safemerge.errors import ConfigError
from safemerge.gate import GatePolicy

Model = TypeVar("Model", bound=BaseModel)
FileConfig = TypeVar("FileConfig", bound=Inputs)
Key = tuple[str | int, ...]

# The same in C, where PyYAML has it: a scheduler reads many recipes again and again.
_Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# `on`, `yes` and the like are text, as in YAML 1.2 and in editors: `on` is a key of ours.
_Loader: Any = type("_Loader", (_Safe,), {})
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_FILE_SUFFIXES = (".jsonl", ".json")


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
    return _load_pipeline(path, overrides).pipeline()


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
    recipe = _load_pipeline(path, None)
    if recipe.name != path.stem and not any_name:
        raise ConfigError(f"{path}: name: expected {path.stem!r}, as the file is called, got {recipe.name!r}")
    return recipe


def recipes_in(folder: Path) -> list[Path]:
    """The files of a folder that are recipes, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))


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
    return _load_file(MergeFileConfig, path, overrides)


def load_sweep_file(path: Path, overrides: Mapping[str, Any] | None = None) -> SweepFileConfig:
    """Read the config file of ``safemerge sweep``; the rest is as of :func:`load_merge_file`."""
    return _load_file(SweepFileConfig, path, overrides)


def sweep_of_flags(settings: Mapping[str, Any]) -> SweepFileConfig:
    """The same of flags alone: dotted key to value.

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
    spec = _validated(SuiteSpec, data, path, lines)
    folder = path.resolve().parent
    moved = {
        "file": None if spec.file is None else _absolute(spec.file, folder),
        "dataset": None if spec.dataset is None else _data_source(spec.dataset, folder),
    }
    return spec.model_copy(update=moved)


def _load_pipeline(path: Path, overrides: Mapping[str, Any] | None) -> RecipeConfig:
    data, lines = _read_yaml(path)
    for key, value in (overrides or {}).items():
        _override(data, key, value)
    config = _validated(RecipeConfig, data, path, lines)
    folder = path.resolve().parent
    moved: RecipeConfig = with_paths_from(config, folder)
    models = {
        role: _model_source(getattr(config, role), folder) for role in ("aligned_model", "unaligned_model")
    }
    return moved.model_copy(update=models)


def _load_file(model: type[FileConfig], path: Path, overrides: Mapping[str, Any] | None) -> FileConfig:
    data, lines = _read_yaml(path)
    folder = path.resolve().parent
    for name in Inputs.model_fields:
        if isinstance(source := data.get(name), str):
            data[name] = _model_source(source, folder)
    if isinstance(output := data.get("output"), str):
        data["output"] = _absolute(output, folder)
    if isinstance(merge := data.get("merge"), dict) and isinstance(merge.get("coefficients"), str):
        data["merge"] = merge | {"coefficients": _absolute(merge["coefficients"], folder)}
    if isinstance(grid := data.get("grid"), dict) and isinstance(grid.get("coefficients"), list):
        files = [_absolute(file, folder) if isinstance(file, str) else file for file in grid["coefficients"]]
        data["grid"] = grid | {"coefficients": files}
    for key, value in (overrides or {}).items():
        typed = key in Inputs.model_fields and isinstance(value, str)
        _override(data, key, _model_source(value, Path.cwd()) if typed else value)
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
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {where}not valid YAML: {getattr(error, 'problem', error)}") from error
    if node is None or not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values, got {_shown(data)}")
    lines: dict[Key, int] = {}
    for key, line in _keys(node, (), set()):
        if key in lines:
            again = f"expected the key once, got it again after line {lines[key]}"
            raise ConfigError(f"{path}: line {line}, {_dotted(key)}: {again}")
        lines[key] = line
    return data, lines


def _keys(node: yaml.Node, at: Key, seen: set[int]) -> Iterator[tuple[Key, int]]:
    """Every key below a YAML node with its line; nodes that an alias repeats only once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        children: list[tuple[str | int, yaml.Node, yaml.Node]] = [(k.value, k, v) for k, v in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(number, item, item) for number, item in enumerate(node.value)]
    else:
        return
    for name, named, value in children:
        yield (*at, name), named.start_mark.line + 1
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
    for key, problem in problems.items():
        full = prefix + key
        line = next((lines[full[:size]] for size in range(len(full), 0, -1) if full[:size] in lines), None)
        place = ", ".join(part for part in (line and f"line {line}", _dotted(full)) if part)
        said.append(f"{place}: {problem}" if place else problem)
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
    return {key: _problem(model, data, key, details) for key, details in deepest.items()}


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
        names = sorted(_model_at(model, data, key[:-1]).model_fields)
        near = difflib.get_close_matches(str(key[-1]), names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
        return f"unknown key; {hint}"
    if kind == "missing":
        return "expected a value, got nothing"
    expected = " or ".join(dict.fromkeys(_expectation(detail["msg"]) for detail in details))
    got = "" if kind == "value_error" else f", got {_shown(details[0]['input'])}"
    return f"expected {expected}{got}"


def _expectation(message: str) -> str:
    """Pydantic's message without its beginning, so that it can follow the word *expected*."""
    message = message.replace("String should match pattern", "a text that matches")
    message = re.sub(r"^(Value error, expected|\w+ should (be|have)) ", "", message)
    return re.sub(r" after validation, not \d+|, unable to parse .*", "", message)


def _model_at(model: type[BaseModel], data: Any, key: Key) -> type[BaseModel]:
    """The config model that a key leads to; of several, the one that the data name by their ``kind``."""
    for part in key:
        data = data[part]
        if isinstance(part, str):
            members = list(_models_in(model.model_fields[part].annotation))
        kind = data.get("kind") if isinstance(data, dict) else None
        model = next((m for m in members if kind in _kinds(m)), members[0])
    return model


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """What a model of several may be named by; nothing where it stands alone."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


# --- paths -----------------------------------------------------------------------------


def with_paths_from(value: Any, folder: Path) -> Any:
    """The same config with the paths in it made absolute: those of files, data and judges.

    Args:
        value: a config, or a tuple of configs; anything else stays what it is.
        folder: where relative paths count from.
    """
    if isinstance(value, tuple):
        return tuple(with_paths_from(item, folder) for item in value)
    if not isinstance(value, BaseModel):
        return value
    changes = {name: with_paths_from(getattr(value, name), folder) for name in type(value).model_fields}
    if isinstance(value, DataSource):
        changes["path"] = _data_source(value.path, folder)
    elif isinstance(value, SuiteConfig) and value.path is not None:
        changes["path"] = _absolute(value.path, folder)
    elif isinstance(value, LocalGuardConfig):
        changes["model"] = _model_source(value.model, folder)
    elif isinstance(value, SweepGrid):
        changes["coefficients"] = tuple(_absolute(file, folder) for file in value.coefficients)
    elif isinstance(value, MergeConfig) and value.coefficients is not None:
        changes["coefficients"] = _absolute(value.coefficients, folder)
    elif isinstance(value, UtilityConfig) and value.include_path is not None:
        changes["include_path"] = _absolute(value.include_path, folder)
    return value.model_copy(update=changes)


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _data_source(source: str, folder: Path) -> str:
    """The absolute path of a file or a folder; a hub id stays what it is."""
    is_hub_id = DATASET_ID.fullmatch(source) is not None and not source.endswith(_FILE_SUFFIXES)
    return source if is_hub_id and not (folder / source).exists() else _absolute(source, folder)


def _model_source(source: str, folder: Path) -> str:
    """A folder's absolute path; what could only be a hub id stays what it is."""
    is_hub_id = HUB_ID.fullmatch(source) is not None and not (folder / source).is_dir()
    return source if is_hub_id or source.startswith(MLFLOW_ADDRESSES) else _absolute(source, folder)
