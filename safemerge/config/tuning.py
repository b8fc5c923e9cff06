"""The ``tuning`` section: a development split on which the merge is chosen."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import Config
from safemerge.config.evaluation import SuiteConfig, UtilityConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.core.options import LEARNED
from safemerge.gate.policy import Finite, Level, Limits, NotNegative, Rate
from safemerge.records import SuiteKind

MAX_RUNGS = 2
"""Most rounds before the last. A DAG has its tasks for each round before it reads a config: those for this
many, for utility and for the last round."""


class Rung(Config):
    """A round of ``tune`` that only a part of the prompts is asked in, after which candidates are dropped."""

    prompts: Annotated[float, Field(gt=0, lt=1)]
    """Share of every suite's prompts asked by the end of it, those of earlier rounds included."""
    keep: Annotated[float, Field(gt=0, le=1)]
    """Largest share of its candidates that goes on, at least one of them."""


class TuningConfig(Config):
    """How ``tune`` chooses a merge: on a development split, whose prompts and documents nothing else uses.

    What is not said here, as judges and generation, is as in ``evaluation``.
    """

    suites: Annotated[tuple[SuiteConfig, ...], Field(min_length=1)]
    """Suites of the development split; they share no prompt with those of ``evaluation``."""
    utility: UtilityConfig
    """Utility task of the development split. With a ``limit``, candidates are first scored on the share of
    those documents that the first of ``rungs`` names, 8 at least, and in the last round on all."""
    grid: SweepGrid = SweepGrid()
    """The candidates."""
    learning: LearningConfig | None = None
    """Fits coefficients to the training data; each λ is one more candidate. With ``methods: [learned]`` in
    ``grid`` they are the only ones."""
    max_over_refusal_rate: Rate | Limits
    """Largest over-refusal rate on the development split: one number, or suite name to number."""
    min_gain_kept: Finite | None = None
    """Smallest share of the utility gained by fine-tuning that a candidate keeps."""
    max_utility_loss: NotNegative | None = None
    """Margin of non-inferiority in the metric's own unit: the paired 95 % interval of the utility lost
    against the fine-tuned adapter ends at or below it."""
    rungs: Annotated[tuple[Rung, ...], Field(max_length=MAX_RUNGS)] = (
        Rung(prompts=0.2, keep=0.4),
        Rung(prompts=0.5, keep=0.4),
    )
    """At most two rounds before the last, which asks all prompts. None: every candidate is asked all."""
    alpha: Level = 0.05
    """Level of the paired tests by which a round drops candidates that do more harm than its best."""
    seed: int = 0
    """Seed of the order in which prompts are asked."""
    arms: tuple[Literal["safemerge", "scale", "safelora", "resta"], ...] = (
        "safemerge",
        "scale",
        "safelora",
        "resta",
    )
    """What the choice is shown beside on the final split, with the aligned model and the fine-tuned adapter:
    the merge as configured, and other methods with their own weights."""

    @property
    def known_grid(self) -> SweepGrid:
        """The grid as far as it is known before coefficients are learned."""
        if self.learning is None:
            return self.grid
        others = tuple(method for method in self.grid.methods if method != LEARNED)
        return self.grid.model_copy(update={"methods": others})

    @model_validator(mode="after")
    def _can_choose(self) -> Self:
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected suites of different names, got twice: {', '.join(twice)}")
        kinds = {suite.kind for suite in self.suites}
        if lacking := sorted(set(SuiteKind) - kinds):
            raise ValueError(f"expected suites of both kinds, got none of kind {', '.join(lacking)}")
        if self.min_gain_kept is None and self.max_utility_loss is None:
            raise ValueError(
                "expected min_gain_kept or max_utility_loss, got neither: the least harm alone may be had by "
                "forgetting the task"
            )
        refusing = {suite.name for suite in self.suites if suite.kind is SuiteKind.OVER_REFUSAL}
        limits = self.max_over_refusal_rate
        if isinstance(limits, dict) and (strange := sorted(limits.keys() - refusing)):
            raise ValueError(
                f"expected max_over_refusal_rate to name over_refusal suites of tuning "
                f"({', '.join(sorted(refusing))}), got {', '.join(strange)}"
            )
        shares = [rung.prompts for rung in self.rungs]
        if shares != sorted(set(shares)):
            raise ValueError(f"expected rungs whose share of the prompts rises, got {shares}")
        return self
