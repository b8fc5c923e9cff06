"""What a user may choose of a merge, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from safemerge.core import methods
from safemerge.core.layer_weights import LayerWeights
from safemerge.errors import ConfigError

OnUndefined = Literal["keep", "merge", "fail"]

DEFAULT_THRESHOLD = 0.35
SELECTIONS = ("threshold", "quantile", "count", "modules")
"""Ways to choose layers, of which a merge takes one."""
SIZES = ("rank", "max_error")
"""Ways to bound what is stored, of which a merge takes one or none."""
WEIGHTS = ("task_weight", "safety_weight")
INSTEAD_OF_COEFFICIENTS = (*SELECTIONS, *WEIGHTS, "density", "components")
"""What coefficients, which weigh every layer, leave nothing of to choose."""
LEARNED = "learned"
"""The method that coefficients are for."""
SERVED_RANK = 16
"""Rank up to which vLLM serves adapters unless told otherwise (its ``--max-lora-rank``)."""


def with_partners_cleared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that override others: one of a group stands for all of it, so its partners become None.

    >>> with_partners_cleared({"quantile": 0.5})
    {'coefficients': None, 'quantile': 0.5, 'threshold': None, 'count': None, 'modules': None}
    """
    cleared = dict(given)
    for group in (SELECTIONS, SIZES, WEIGHTS):
        if any(name in given for name in group):
            cleared = cleared | {name: None for name in group if name not in given}
    if given.get("coefficients") is not None:
        return dict.fromkeys(INSTEAD_OF_COEFFICIENTS) | {"method": LEARNED} | cleared
    if any(given.get(name) is not None for name in INSTEAD_OF_COEFFICIENTS):
        cleared = {"coefficients": None} | cleared
    return cleared


def conflict(given: Mapping[str, Any]) -> str | None:
    """What is wrong with settings that do not go together, of which those that are None are not given."""
    beside = [name for name in INSTEAD_OF_COEFFICIENTS if given.get(name) is not None]
    if beside and given.get("coefficients") is not None:
        got = " and ".join(beside)
        return f"expected coefficients alone, as they choose and weigh every layer, got {got} beside them"
    for group in (SELECTIONS, SIZES):
        both = [name for name in group if given.get(name) is not None]
        if len(both) > 1:
            return f"expected one of {', '.join(group)}, got {' and '.join(both)}"
    return None


class MergeSettings(TypedDict, total=False):
    """The fields of :class:`MergeOptions` as keyword arguments; each is explained there."""

    method: str
    threshold: float | None
    quantile: float | None
    count: int | None
    modules: Sequence[str] | None
    task_weight: float | None
    safety_weight: float | None
    on_undefined: OnUndefined
    density: float | None
    components: int | None
    coefficients: LayerWeights | None
    seed: int
    rank: int | None
    max_error: float | None


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Which layers are merged, how, and at what rank the result is stored.

    Raises:
        ConfigError: a value is out of bounds or two do not go together; it is named.
    """

    method: str = methods.DEFAULT
    """Name of a file in :mod:`safemerge.core.methods`."""
    threshold: float | None = None
    """τ: layers with a cosine below it are chosen. 0.35 where nothing else chooses."""
    quantile: float | None = None
    """Choose this share of the layers instead, those with the lowest cosines; in [0, 1]."""
    count: int | None = None
    """Choose so many layers instead, those with the lowest cosines."""
    modules: Sequence[str] | None = None
    """Choose these layers instead: module paths, or patterns with ``*`` as in a shell."""
    task_weight: float | None = None
    """α. The method's default (0.8 for ``exact``) where no weight is given."""
    safety_weight: float | None = None
    """β. Where only α is given, 1 − α, or the default of a method with two strengths of their own."""
    on_undefined: OnUndefined = "keep"
    """What to do with layers whose cosine is undefined."""
    density: float | None = None
    """Share of entries kept by methods that prune, in (0, 1]."""
    components: int | None = None
    """Largest number of singular directions of V that methods which decompose it use, at least 1."""
    coefficients: LayerWeights | None = None
    """Weights of every layer, in place of a choice and of weights for all; their method is ``learned``."""
    seed: int = 0
    """Seed of random draws."""
    rank: int | None = None
    """Store every update at this rank, as exactly as it allows; otherwise at the rank that merging gives."""
    max_error: float | None = None
    """Store at the smallest rank that keeps every layer's relative error (Frobenius norm) at or below it."""

    def __post_init__(self) -> None:
        if self.coefficients is not None and self.method == methods.DEFAULT:
            object.__setattr__(self, "method", LEARNED)
        if self.modules is not None:
            object.__setattr__(self, "modules", tuple(self.modules))  # equal and hashable, whatever came
        if self.on_undefined not in (known := get_args(OnUndefined)):
            raise ConfigError(f"on_undefined: expected one of {', '.join(known)}, got {self.on_undefined!r}")
        for name in ("threshold", "quantile", "task_weight", "safety_weight", "density", "max_error"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name}: expected a finite number, got {value}")
        if wrong := conflict(vars(self)):
            raise ConfigError(wrong)
        self._check_selection()
        self._check_method()
        self._check_storage()

    def _check_selection(self) -> None:
        if self.quantile is not None and not 0 <= self.quantile <= 1:
            raise ConfigError(f"quantile: expected a share in [0, 1], got {self.quantile}")
        if self.count is not None and self.count < 0:
            raise ConfigError(f"count: expected a number of layers, got {self.count}")
        if self.modules is not None and not self.modules:
            raise ConfigError("modules: expected at least one path or pattern, got none")

    def _check_method(self) -> None:
        takers = {"density": "prune", "components": "decompose V", "coefficients": "weigh each layer"}
        for name, what in takers.items():
            if (getattr(self, name) is not None) != _takes(self.method, name):
                if getattr(self, name) is None:
                    raise ConfigError(f"{name}: expected with method {self.method}, got none")
                named = (other for other in methods.names() if _takes(other, name))
                got = "them" if name == "coefficients" else getattr(self, name)
                raise ConfigError(
                    f"{name}: expected with methods that {what} alone ({', '.join(named)}), "
                    f"got {got} with {self.method}"
                )
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"density: expected a share in (0, 1], got {self.density}")
        if self.components is not None and self.components < 1:
            raise ConfigError(f"components: expected at least 1, got {self.components}")

    def _check_storage(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank: expected at least 1, got {self.rank}")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise ConfigError(f"max_error: expected a relative error in [0, 1), got {self.max_error}")

    @property
    def weights(self) -> tuple[float, float]:
        """(α, β); the means over the layers where each has its own."""
        if self.coefficients is not None:
            return self.coefficients.mean
        task, safety = self.task_weight, self.safety_weight
        default_task, default_safety = methods.get(self.method).default_weights
        if default_task + default_safety != 1:  # two strengths of their own
            return default_task if task is None else task, default_safety if safety is None else safety
        if task is None:
            task = default_task if safety is None else 1 - safety
        return task, 1 - task if safety is None else safety


def _takes(method: str, option: str) -> bool:
    chosen = methods.get(method)
    takes = {
        "density": chosen.prunes,
        "components": chosen.decomposes,
        "coefficients": chosen.weighs_layers,
    }
    return takes[option]
