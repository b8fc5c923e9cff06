"""Weights that each layer has of its own, in place of one pair for all merged layers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from safemerge.core.module_names import listed
from safemerge.errors import ConfigError, MismatchError

UNCHANGED = (1.0, 0.0)
"""Weights that leave a layer as fine-tuning made it."""


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """(α, β) of every layer of a task adapter: its merged update is α·ΔW_task + β·ΔW_safety.

    Raises:
        ConfigError: there are none, or a weight is not finite; such layers are named.
    """

    layers: Mapping[str, tuple[float, float]]
    """Module path to (α, β)."""
    name: str = ""
    """What tells them apart from others of the same adapters, in a few characters."""
    task_adapter: str | None = None
    """sha256 of the adapter that they belong to; None where they may be used with any."""
    safety_adapter: str | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("coefficients: expected a pair for every layer, got none")
        if wrong := [module for module, pair in self.layers.items() if not all(map(math.isfinite, pair))]:
            raise ConfigError(f"coefficients: expected finite numbers, got others in {listed(wrong)}")

    @cached_property
    def digest(self) -> str:
        """sha256 of the weights, whatever their order."""
        plain = {module: list(map(float, pair)) for module, pair in self.layers.items()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def mean(self) -> tuple[float, float]:
        """Means of α and of β over the layers."""
        task, safety = zip(*self.layers.values(), strict=True)
        return sum(task) / len(task), sum(safety) / len(safety)

    def check(self, task: Collection[str], safety: Collection[str]) -> None:
        """Check that they are those of the layers of an adapter.

        Args:
            task: Layers of the task adapter.
            safety: Layers of the safety adapter.

        Raises:
            MismatchError: layers have none, others have some, or one weighs an update that is not there.
        """
        if missing := set(task) - self.layers.keys():
            raise MismatchError(f"coefficients: expected some of every layer, got none of {listed(missing)}")
        if extra := self.layers.keys() - set(task):
            raise MismatchError(
                f"coefficients: expected layers of the task adapter, got others: {listed(extra)}"
            )
        if absent := {m for m, (_, beta) in self.layers.items() if beta != 0 and m not in safety}:
            raise MismatchError(
                "coefficients: expected 0 for the safety adapter where it lacks the layer, "
                f"got others in {listed(absent)}"
            )
