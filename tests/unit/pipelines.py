"""A pipeline's config in as few words as can be, for tests that run nothing of it."""

from __future__ import annotations

from typing import Any

from safemerge.config.pipeline import PipelineConfig

TRAINING: dict[str, Any] = {"data": [{"path": "data.jsonl"}], "steps": 2}
PIPELINE: dict[str, Any] = {
    "name": "tiny",
    "aligned_model": "aligned",
    "unaligned_model": "unaligned",
    "task_training": TRAINING,
    "safety_training": TRAINING,
    "evaluation": {
        "utility": {"task": "t", "metric": "m"},
        "suites": [
            {"name": "harm", "kind": "harmful", "path": "harm.jsonl"},
            {"name": "plain", "kind": "over_refusal", "path": "plain.jsonl"},
        ],
    },
    "gate": {"max_harmful_rate": 0.2, "max_over_refusal_rate": 0.2},
    "tracking": {"experiment": "e", "registered_model": "tiny-lora"},
}
"""Plain data, as a YAML file holds it. Change a copy: ``PIPELINE | {"name": "other"}``."""


def pipeline_config(**changes: Any) -> PipelineConfig:
    """The config of :data:`PIPELINE`, with other values for some of its keys."""
    return PipelineConfig.model_validate(PIPELINE | changes)
