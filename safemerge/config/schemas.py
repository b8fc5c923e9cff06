"""JSON Schemas of the files that people and other programs write and read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from safemerge.config.commands import MergeFileConfig, SweepFileConfig
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.recipes import RecipeConfig
from safemerge.config.suites import SuiteSpec
from safemerge.gate import GatePolicy
from safemerge.records import EvaluationReport

MODELS: dict[str, type[BaseModel]] = {
    "pipeline": PipelineConfig,
    "recipe": RecipeConfig,
    "merge": MergeFileConfig,
    "sweep": SweepFileConfig,
    "policy": GatePolicy,
    "suite": SuiteSpec,
    "report": EvaluationReport,
}
"""Kinds of files: a pipeline, a recipe (which is one with a schedule), a merge's or a sweep's settings, the
gate's policy, a suite of prompts, and the report of an evaluation."""


def json_schema(kind: str) -> dict[str, Any]:
    """The schema of a kind of file, for editors that complete and check it."""
    return MODELS[kind].model_json_schema()
