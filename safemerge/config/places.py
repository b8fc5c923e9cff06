"""Config keys that say where something lies: marked where they are defined, and found by their marks.

Whatever treats them alike asks here: relative paths count from a file's folder, a copy of a recipe leads to
the same files, and no digest or report of settings holds where on a machine something lay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from safemerge.config.base import DATASET_ID, HUB_ID, MLFLOW_ADDRESSES

Key = tuple[str | int, ...]
"""Way to a value in plain data: names of keys and numbers of items."""

_FILE_SUFFIXES = (".jsonl", ".json")


def absolute(path: str, folder: Path) -> str:
    """The path from the root; a relative one counts from the folder."""
    return str((folder / Path(path).expanduser()).resolve())


def data_source(source: str, folder: Path) -> str:
    """The absolute path of a file or a folder; a hub id stays what it is."""
    is_hub_id = DATASET_ID.fullmatch(source) is not None and not source.endswith(_FILE_SUFFIXES)
    return source if is_hub_id and not (folder / source).exists() else absolute(source, folder)


def model_source(source: str, folder: Path) -> str:
    """A folder's absolute path; what could only be a hub id stays what it is."""
    is_hub_id = HUB_ID.fullmatch(source) is not None and not (folder / source).is_dir()
    return source if is_hub_id or source.startswith(MLFLOW_ADDRESSES) else absolute(source, folder)


@dataclass(frozen=True)
class Place:
    """Mark of a key that says where something lies."""

    seen_from: Callable[[str, Path], str]
    """The same place, whatever the working directory: what a value means in a file of a folder."""


FilePlace = Annotated[str, Place(absolute)]
DataPlace = Annotated[str, Place(data_source)]
ModelPlace = Annotated[str, Place(model_source)]


def places(kind: Any, data: Any, at: Key = ()) -> Iterator[tuple[Key, str, Place]]:
    """Every place that plain data name: its key, its value and its mark.

    Args:
        kind: what the data are to become: a config model, or the annotation of a field.
        data: as a YAML file holds them, checked or not.
        at: where they stand.
    """
    if isinstance(data, list):
        for number, item in enumerate(data):
            yield from places(kind, item, (*at, number))
    elif isinstance(data, dict) and (model := model_for(kind, data)):
        for name in (name for name in data if name in model.model_fields):
            yield from places(model.model_fields[name].rebuild_annotation(), data[name], (*at, name))
    elif isinstance(data, str) and (place := _mark(kind)):
        yield at, data, place


def with_places_from(kind: Any, data: Any, folder: Path) -> Any:
    """The same plain data with relative paths, which count from the folder, made absolute."""
    data = deepcopy(data)
    for (*way, last), value, place in list(places(kind, data)):
        reduce(getitem, way, data)[last] = place.seen_from(value, folder)
    return data


def without_places(config: BaseModel) -> dict[str, Any]:
    """A config as plain data without where on a machine things lie; names on the hub stay."""
    return config.model_dump(mode="json", exclude=_marked(config))


def model_for(kind: Any, data: Any) -> type[BaseModel] | None:
    """The config model that data are of; of several, the one that they name by their ``kind``."""
    members = list(_models_in(kind))
    named = data.get("kind") if isinstance(data, dict) else None
    return next((member for member in members if named in _kinds(member)), members[0] if members else None)


def _marked(value: Any) -> dict[Any, Any]:
    """Keys with a mark, as pydantic's ``exclude`` takes them."""
    found: dict[Any, Any]
    if isinstance(value, tuple):
        found = {number: _marked(item) for number, item in enumerate(value)}
    elif isinstance(value, BaseModel):
        fields = {name: (field, getattr(value, name)) for name, field in type(value).model_fields.items()}
        found = {name: _is_here(field, held) or _marked(held) for name, (field, held) in fields.items()}
    else:
        return {}
    return {key: marked for key, marked in found.items() if marked}


def _is_here(field: FieldInfo, held: object) -> bool:
    """Whether a field has a mark, and holds no name on the hub."""
    is_on_hub = isinstance(held, str) and HUB_ID.fullmatch(held) is not None
    return _mark(field.rebuild_annotation()) is not None and not is_on_hub


def _mark(kind: Any) -> Place | None:
    if isinstance(kind, Place):
        return kind
    return next((mark for argument in get_args(kind) if (mark := _mark(argument))), None)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """What a model of several may be named by; nothing where it stands alone."""
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for argument in get_args(kind):
        yield from _models_in(argument)
