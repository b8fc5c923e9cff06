"""The ``merge`` section: which layers are merged, and how."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from safemerge.config.base import Config
from safemerge.config.places import FilePlace
from safemerge.config.values import Method, OnUndefined, Share, Weight
from safemerge.core import methods
from safemerge.core.options import LEARNED, conflict


class MergeConfig(Config):
    """The merge of the task adapter with the safety adapter."""

    method: Method = methods.DEFAULT
    threshold: float | None = None
    """τ: layers with a cosine below it are merged. 0.35 where nothing else chooses."""
    quantile: Share | None = None
    """Merge this share of the layers, those with the lowest cosines."""
    count: Annotated[int, Field(ge=0)] | None = None
    """Merge so many layers, those with the lowest cosines."""
    modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Merge these layers: module paths, or patterns with ``*``."""
    task_weight: Weight | None = None
    """α, weight of the task adapter in merged layers. The method's default where neither weight is given."""
    safety_weight: Weight | None = None
    """β, weight of the safety adapter in merged layers. Where not given 1 − α, or the method's default where
    its two weights are strengths of their own (resta, lox, lssf)."""
    on_undefined: OnUndefined = OnUndefined.KEEP
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of entries kept by methods that prune."""
    components: Annotated[int, Field(gt=0)] | None = None
    """Largest number of singular directions of V that methods which decompose it use."""
    coefficients: FilePlace | None = None
    """A file of ``safemerge learn`` (relative to the config file) with weights of every layer, in place of a
    choice of layers and of weights for all. The method is then ``learned``."""
    seed: int = 0
    """Seed of random draws."""
    rank: Annotated[int, Field(gt=0)] | None = None
    """Store every update at this rank."""
    max_error: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Store at the smallest rank that keeps every layer's relative error at or below it."""

    @model_validator(mode="before")
    @classmethod
    def _coefficients_have_a_method(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("coefficients") is not None:
            return {"method": LEARNED, **data}
        return data

    @model_validator(mode="after")
    def _settings_go_together(self) -> Self:
        if wrong := conflict(vars(self)):
            raise ValueError(wrong)
        return self
