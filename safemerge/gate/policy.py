"""The gate's policy: what a release manager signs. Values and their bounds only.

Rules are of three kinds. A *bound* passes where the end of a 95 % interval keeps to it, fails
where the figure itself does not, and in between the prompts are too few to tell. Every suite must
keep its bound, so several suites make a false pass no likelier. A *test* fails where it finds a
significant increase; there several suites are corrected for, by Holm. A *point rule* holds the
figure itself against its limit (over-refusal, utility, gain kept): it may pass by luck.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from safemerge.described import Described
from safemerge.records import json_digest


def _no_switch(value: object) -> object:
    """A rule is no switch: ``true`` would count as 1, a limit that every rate keeps."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}")
    return value


_Number = BeforeValidator(_no_switch)
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _Number]
Difference = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False), _Number]
Level = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False), _Number]
Finite = Annotated[float, Field(allow_inf_nan=False), _Number]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), _Number]
Limits = Annotated[dict[str, Rate], Field(min_length=1)]


class OnCannotTell(StrEnum):
    """What the verdict is where no rule is broken, but the data cannot decide one."""

    BLOCK = "block"
    """The adapter is blocked."""
    ASK = "ask"
    """The verdict is "cannot tell": nothing ships until a person has decided."""


class SignOff(StrEnum):
    """Whether a person must sign what passed."""

    NONE = "none"
    """What passes ships."""
    REQUIRED = "required"
    """What passes waits for a person's signature. What is blocked is never signed."""


class Regression(Described):
    """How much worse than a reference an adapter may be, measured on the same prompts and documents."""

    max_harmful_increase: Difference | None = None
    """Limit for the upper end of the paired 95 % interval of harmful rate minus the reference's, in every
    harmful suite, such as 0.05. Below 0: so much less than the reference it must be."""
    harmful_alpha: Level | None = None
    """Level of an exact one-sided McNemar test: a significant increase of the harmful rate is refused.
    Several suites share the level by Holm's correction. No significant increase is no proof of none."""
    max_over_refusal_increase: Difference | None = None
    """As ``max_harmful_increase``, in every over-refusal suite."""
    over_refusal_alpha: Level | None = None
    """As ``harmful_alpha``, over the over-refusal suites."""
    max_utility_loss: NotNegative | None = None
    """Margin of non-inferiority in the metric's own unit: the paired 95 % interval of the utility lost
    against the reference must end at or below it."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if all(value is None for value in self.__dict__.values()):
            raise ValueError(f"expected one of {', '.join(type(self).model_fields)}, got none")
        return self


class References(Described):
    """Whom an adapter is compared with."""

    champion: Regression | None = None
    """The adapter that is released now. Not applicable while there is none."""
    aligned: Regression | None = None
    """The aligned model, before any fine-tuning."""
    fine_tuned: Regression | None = None
    """The fine-tuned adapter, unrepaired."""


class GatePolicy(Described):
    """What an adapter must show before it may become the champion."""

    max_harmful_rate: Rate
    """Limit for the upper end of the harmful rate's 95 % interval, in every harmful suite."""
    max_category_harmful_rate: Rate | Limits | None = None
    """The same for every category of every harmful suite: one number for all, or category to number.
    Categories that are not named are shown, not judged. None: no rule."""
    max_over_refusal_rate: Rate | Limits
    """Largest over-refusal rate: one number for every over-refusal suite, or suite name to number.
    Suites that are not named are shown, not judged."""
    min_utility: Finite | None = None
    """Worst utility that may ship, in the metric's own unit: the smallest value allowed, or the
    largest where lm-eval says that lower is better. None: no rule."""
    min_gain_kept: Finite | None = None
    """Smallest share of the utility gained by fine-tuning that must be left:
    (arm − aligned) / (fine-tuned − aligned). None: no rule."""
    against: References = References()
    """Regressions against other arms."""
    on_cannot_tell: OnCannotTell = OnCannotTell.BLOCK
    """What follows where no rule is broken, but the data cannot decide one. What is missing, not finite or
    not comparable blocks in any case."""
    sign_off: SignOff = SignOff.NONE
    """Whether an adapter that passes all rules also needs a person's signature."""

    def digest(self) -> str:
        """Sha256 of the policy's canonical JSON."""
        return json_digest(self.model_dump(mode="json"))
