"""How commands are called in tests."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from safemerge.cli.main import app

NAMES = ("task_adapter", "safety_adapter", "aligned_model", "unaligned_model")
"""A merge's inputs, as config files name them and the fixture ``merge_files`` orders them."""


def invoke(*arguments: object, width: int = 120) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": str(width)})


def models(files) -> list[object]:
    return ["--aligned-model", files.aligned, "--unaligned-model", files.unaligned]


def inputs(files) -> list[object]:
    return ["--task-adapter", files.task, "--safety-adapter", files.safety, *models(files)]
