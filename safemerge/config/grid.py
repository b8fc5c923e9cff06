"""The grid of settings that ``sweep`` weighs and ``tune`` chooses from."""

from __future__ import annotations

import itertools
from typing import Annotated, Self

from pydantic import Field, model_validator

from safemerge.config.base import Config
from safemerge.config.places import FilePlace
from safemerge.config.values import Method, OnUndefined, Share, Weight
from safemerge.core import methods
from safemerge.core.options import conflict

Count = Annotated[int, Field(ge=0)]


class SweepGrid(Config):
    """Settings to try: every method with every choice of layers and every pair of weights."""

    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = (methods.DEFAULT,)
    thresholds: tuple[Weight, ...] = ()
    """Values of τ."""
    quantiles: tuple[Share, ...] = ()
    """Shares of the layers, those with the lowest cosines."""
    counts: tuple[Count, ...] = ()
    """Numbers of layers."""
    weights: tuple[Weight | tuple[Weight, Weight], ...] = ()
    """α, or [α, β]. The methods' defaults where there are none."""
    densities: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5,)
    """Shares of entries kept, for methods that prune."""
    coefficients: tuple[FilePlace, ...] = ()
    """Files of ``safemerge learn`` (relative to the config file), each of which is a candidate."""
    components: Annotated[int, Field(gt=0)] = 8
    """Most singular directions of V, for methods that decompose it."""
    on_undefined: OnUndefined = OnUndefined.KEEP
    seed: int = 0
    """Seed of random draws."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """Store every update at this rank."""
    max_error: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Store at the smallest rank that keeps every layer's relative error at or below it."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if wrong := conflict({"rank": self.rank, "max_error": self.max_error}):
            raise ValueError(wrong)
        return self

    def choices(self) -> list[dict[str, float | int]]:
        """Ways to choose layers; half of them where none is asked for."""
        by = {"threshold": self.thresholds, "quantile": self.quantiles, "count": self.counts}
        return [{name: value} for name, values in by.items() for value in values] or [{"quantile": 0.5}]

    def weightings(self) -> list[dict[str, float]]:
        """Weights to try."""
        pairs = [(weight,) if isinstance(weight, float | int) else weight for weight in self.weights]
        names = ("task_weight", "safety_weight")
        return [dict(zip(names, pair, strict=False)) for pair in pairs] or [{}]

    def points(self) -> list[tuple[dict[str, float | int], dict[str, float]]]:
        """Every choice with every weighting."""
        return list(itertools.product(self.choices(), self.weightings()))
