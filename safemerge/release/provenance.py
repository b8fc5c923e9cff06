"""What a pipeline's config says of where its figures come from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from safemerge import __version__
from safemerge.config.pipeline import PipelineConfig
from safemerge.config.training import DataSource
from safemerge.reports.release import Provenance


def provenance_of(
    pipeline: PipelineConfig | None, *, runs: Mapping[str, str] | None = None, now: datetime | None = None
) -> Provenance:
    """Models, data and seeds as configured; time and version where nothing else is known.

    Args:
        pipeline: the pipeline that made the candidate; None where there is none.
        runs: step to the MLflow run that holds it.
        now: when the report is made; the present where it is not given.
    """
    created = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    made = Provenance(created=created, safemerge_version=__version__, runs=dict(runs or {}))
    if pipeline is None:
        return made
    trainings = {"task_training": pipeline.task_training, "safety_training": pipeline.safety_training}
    return made.model_copy(
        update={
            "name": pipeline.name,
            "models": {
                "aligned_model": pipeline.aligned_model,
                "unaligned_model": pipeline.unaligned_model,
            },
            "datasets": {role: tuple(map(_source, training.data)) for role, training in trainings.items()},
            "seeds": {role: training.seed for role, training in trainings.items()},
        }
    )


def _source(source: DataSource) -> str:
    return f"{source.path}@{source.revision}" if source.revision else source.path
