"""One step's MLflow run, written so that a retried step leaves the same record as an unbroken one."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.records import ArtifactRef, StepResult
from safemerge.tracking import tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_PARAM_CHARACTERS = 6000
"""MLflow's own limit on the length of a parameter."""

MAX_NAME_CHARACTERS = 250
"""MLflow's own limit on the name of a parameter or metric."""


class StepRun:
    """Metrics, tables and artifacts of one step.

    Every method may be called again with the same values by a later attempt and changes nothing then.
    """

    def __init__(self, client: MlflowClient, run_id: str, step: str, inputs_digest: str) -> None:
        self.client = client
        self.run_id = run_id
        self.step = step
        self.inputs_digest = inputs_digest
        self._logged_steps: dict[str, int] = {}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, flattened with dots; nulls are left out."""
        from mlflow.entities import Param

        flat = [Param(_name(key), str(value)[:MAX_PARAM_CHARACTERS]) for key, value in _flatten(params)]
        for start in range(0, len(flat), 100):
            self.client.log_batch(self.run_id, params=flat[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float | int | None], step: int = 0) -> None:
        """Log one point of each metric, unless an earlier attempt had logged that step already."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        points = [
            Metric(key, float(value), now_ms, step)
            for key, value in ((_name(key), value) for key, value in metrics.items())
            if value is not None and self._last_logged(key) < step
        ]
        if points:
            self.client.log_batch(self.run_id, metrics=points)
        for point in points:
            self._logged_steps[point.key] = step

    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact_file: str) -> None:
        """Log rows as a table that MLflow's pages show, once only: MLflow would append."""
        known = {
            info.path for info in self.client.list_artifacts(self.run_id, str(Path(artifact_file).parent))
        }
        known |= {info.path for info in self.client.list_artifacts(self.run_id)}
        if rows and artifact_file not in known:
            columns = {key: [row.get(key) for row in rows] for key in rows[0]}
            self.client.log_table(self.run_id, columns, artifact_file)

    def log_text(self, text: str, artifact_file: str) -> ArtifactRef:
        """Store a text file."""
        import hashlib

        self.client.log_text(self.run_id, text, artifact_file)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
        return ArtifactRef(uri=f"runs:/{self.run_id}/{artifact_file}", digest=digest)

    def log_file(self, path: Path) -> None:
        """Store a file under its own name."""
        self.client.log_artifact(self.run_id, str(path))

    def log_folder(self, folder: Path, artifact_path: str, digest: str) -> ArtifactRef:
        """Store a folder under a name; ``digest`` is the sha256 that a reader checks it by."""
        self.client.log_artifacts(self.run_id, str(folder), artifact_path)
        return ArtifactRef(uri=f"runs:/{self.run_id}/{artifact_path}", digest=digest)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Record that the step read a data set; ``digest`` is its sha256."""
        from mlflow.entities import Dataset, DatasetInput

        # MLflow keeps 36 characters of a data set's digest; the tag has all of them.
        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset)])
        self.client.set_tag(self.run_id, tags.DATASET + name, digest)

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags, cut to what MLflow holds."""
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, tags.fitting(value))

    def finish(
        self,
        outputs: Mapping[str, ArtifactRef] | None = None,
        figures: Mapping[str, float | str | bool | None] | None = None,
    ) -> StepResult:
        """Write the step's result and end the run. Only then does the step count as done."""
        result = StepResult(
            step=self.step,
            run_id=self.run_id,
            inputs_digest=self.inputs_digest,
            outputs=dict(outputs or {}),
            figures=dict(figures or {}),
        )
        self.client.set_tag(self.run_id, tags.RESULT, result.model_dump_json())
        self.client.set_terminated(self.run_id, "FINISHED")
        return result

    def _last_logged(self, key: str) -> int:
        if key not in self._logged_steps:
            history = self.client.get_metric_history(self.run_id, key)
            self._logged_steps[key] = max((point.step for point in history), default=-1)
        return self._logged_steps[key]


def _name(key: str) -> str:
    """A name that MLflow takes: a plain path. Names of categories come from data and may hold anything."""
    parts = re.sub(r"[^\w. /-]+", "_", key)[:MAX_NAME_CHARACTERS].split("/")
    return "/".join(part for part in parts if part.strip(".")) or "_"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat.append((prefix + key, value))
    return flat
