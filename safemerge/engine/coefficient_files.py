"""Coefficients as merges take them, from the records of ``safemerge learn``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from safemerge.config.grid import SweepGrid
from safemerge.core.layer_weights import LayerWeights
from safemerge.core.module_names import listed
from safemerge.errors import DataError
from safemerge.records import json_digest
from safemerge.reports.learning import Coefficients


def read_coefficients(path: str | Path) -> LayerWeights:
    """The weights in a file of ``safemerge learn``, for ``coefficients`` of a merge's settings.

    Raises:
        DataError: the file is missing, holds something else, or a layer more than once.
    """
    record = Coefficients.read(Path(path))
    times = Counter(layer.module for layer in record.layers)
    if twice := [module for module, number in times.items() if number > 1]:
        raise DataError(f"{path}: expected every layer once, got again: {listed(twice)}")
    return layer_weights(record)


def layer_weights(record: Coefficients) -> LayerWeights:
    """The weights of a record, bound to the adapters that they were learned for."""
    return LayerWeights(
        {layer.module: (layer.task, layer.safety or 0.0) for layer in record.layers},
        name=f"{record.harm_weight:g}",
        task_adapter=record.digests.get("task_adapter"),
        safety_adapter=record.digests.get("safety_adapter"),
    )


def file_name(record: Coefficients) -> str:
    """Name of a record's file."""
    return f"coefficients_{record.harm_weight:g}.json"


def files_in(folder: Path) -> list[Path]:
    """All records in a folder that ``learn`` wrote."""
    return sorted(folder.glob("coefficients_*.json"))


def folder_digest(folder: Path) -> str:
    """The sha256 of the weights in a folder: what their fits took is another time another."""
    return json_digest({file.name: read_coefficients(file).digest for file in files_in(folder)})


def with_learned(grid: SweepGrid, folder: Path | None) -> SweepGrid:
    """A grid with every record of a folder as a candidate; the same grid without one."""
    if folder is None:
        return grid
    files = map(str, files_in(folder))
    return grid.model_copy(update={"coefficients": (*grid.coefficients, *files)})
