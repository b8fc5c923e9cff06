"""What a user may choose of a merge, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from safemerge.errors import ConfigError

PlainMethod = Literal["exact", "peft_linear", "scale", "scale_selected"]
"""What a user of safemerge chooses from; ``dare_linear`` is there for the published script's users."""
Method = Literal[PlainMethod, "dare_linear"]
OnUndefined = Literal["keep", "merge", "fail"]

DEFAULT_THRESHOLD = 0.35
DEFAULT_TASK_WEIGHT = 0.8


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Which layers are merged, and how.

    Raises:
        ConfigError: a value is out of bounds or two do not go together; it is named.
    """

    method: Method = "exact"
    """``exact``: α·ΔW_task + β·ΔW_safety in chosen layers, ΔW_task elsewhere. ``peft_linear``
    and ``dare_linear``: PEFT's sums of the factors there. ``scale``: α·ΔW_task in all layers.
    ``scale_selected``: α·ΔW_task in chosen layers."""
    threshold: float | None = None
    """τ: layers with a cosine below it are chosen. 0.35 where no quantile is given either."""
    quantile: float | None = None
    """Choose this share of the layers instead, those with the lowest cosines; in [0, 1]."""
    task_weight: float | None = None
    """α. 0.8 where no weight is given, 1 − β where only the other is."""
    safety_weight: float | None = None
    """β. 1 − α where not given."""
    on_undefined: OnUndefined = "keep"
    """What to do with layers whose cosine is undefined."""
    density: float | None = None
    """``dare_linear`` only: share of factor entries kept, in (0, 1]."""
    seed: int = 0
    """``dare_linear`` only: seed of its random draws."""

    def __post_init__(self) -> None:
        _check_choice("method", self.method, get_args(Method))
        _check_choice("on_undefined", self.on_undefined, get_args(OnUndefined))
        for name in ("threshold", "quantile", "task_weight", "safety_weight", "density"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, got {value}")
        if self.threshold is not None and self.quantile is not None:
            raise ConfigError(
                f"expected threshold or quantile, got both ({self.threshold} and {self.quantile})"
            )
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise ConfigError(f"quantile: expected a share in [0, 1], got {self.quantile}")
        if (self.density is None) == (self.method == "dare_linear"):
            raise ConfigError(
                f"density: expected with method dare_linear and with no other, "
                f"got {self.density} with {self.method}"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"density: expected a share in (0, 1], got {self.density}")

    @property
    def weights(self) -> tuple[float, float]:
        """(α, β)."""
        task, safety = self.task_weight, self.safety_weight
        if task is None:
            task = DEFAULT_TASK_WEIGHT if safety is None else 1 - safety
        return task, 1 - task if safety is None else safety


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
