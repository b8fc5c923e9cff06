"""What a scheduler asks of a step, as JSON."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from safemerge.described import Record
from safemerge.errors import ConfigError
from safemerge.records import ArtifactRef


class StepRequest(Record):
    """One step to run: in which pipeline run, on which inputs."""

    run_id: str | None = None
    """MLflow run of the pipeline; None for ``open``, which makes it."""
    inputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Outputs of earlier steps."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Plain values that the step needs besides."""

    @property
    def opened_run_id(self) -> str:
        """MLflow run of the pipeline, for every step but the one that makes it.

        Raises:
            ConfigError: the request names none.
        """
        if not self.run_id:
            raise ConfigError("step request: expected run_id, the pipeline's run in MLflow, got none")
        return self.run_id

    def input(self, name: str) -> ArtifactRef:
        """An input that the step cannot do without.

        Raises:
            ConfigError: it is not there.
        """
        if name not in self.inputs:
            raise ConfigError(
                f"step input {name!r}: expected an artifact, got {sorted(self.inputs) or 'no inputs'}"
            )
        return self.inputs[name]
