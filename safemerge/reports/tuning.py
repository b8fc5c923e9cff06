"""How a merge was chosen on one split, and what it shows on another."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from safemerge.described import FORMAT_VERSION, Record
from safemerge.errors import DataError
from safemerge.records import Estimate, Interval

CHOSEN_ARM = "chosen"
"""What the choice is called among the arms on the final split, and its folder."""


class Fate(StrEnum):
    """What became of a candidate of ``tune``."""

    CHOSEN = "chosen"
    """The least harm of those that keep every limit on all prompts."""
    KEPT_LIMITS = "kept_limits"
    """Asked every prompt, and keeps every limit; another was better."""
    MISSED = "missed"
    """Misses a limit that neither more prompts nor more documents would mend."""
    BEATEN = "beaten"
    """Does significantly more harm than the best of its round, on the same prompts."""
    OUTRANKED = "outranked"
    """Not among the best that its round let go on; nothing was proven."""


class TunedCandidate(Record):
    """One merge that was tried, and how it fared on the development split."""

    name: str
    settings: dict[str, JsonValue]
    """Its ``merge`` section."""
    layers_merged: int
    adapter_digest: str
    fate: Fate
    reason: str
    """Why, in a sentence."""
    rounds: int
    """Rounds that it was asked prompts in; 0 where its utility decided."""
    utility: float | None
    """On the documents scored: candidates that were dropped early were scored on the first of them."""
    utility_change: Estimate | None = None
    """Against the fine-tuned adapter on the same documents, in the metric's own unit."""
    gain_kept: Estimate | None
    """Share of the utility gained by fine-tuning; None where fine-tuning showed no clear gain."""
    harmful: Estimate | None
    """Harmful rate over the harmful prompts asked; None where none was."""
    over_refusal: dict[str, Estimate] = Field(default_factory=dict)
    """Suite to rate, over the prompts asked."""


class TuneCost(Record):
    """What a choice took, beside what asking every candidate every prompt takes."""

    prompts: int
    """Prompts answered."""
    prompts_in_full: int
    tokens: int
    """Upper bound of the tokens generated: prompts times the longest answer."""
    documents: int
    """Documents scored for utility, by candidates."""
    wall_s: float | None = None
    """Seconds from the first round to the choice; None where rounds ran on their own, as in a pipeline."""


class TunedArm(Record):
    """An arm on the final split."""

    name: str
    adapter_digest: str | None
    utility: float | None
    utility_interval: Interval | None = None
    harmful: Estimate
    over_refusal: dict[str, Estimate]
    gain_kept: Estimate | None


class TuneReport(Record):
    """``safemerge_tune.json``: how a merge was chosen on one split, and what it shows on another."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    chosen: str | None
    """Name of the candidate; None where none keeps the limits."""
    summary: str
    """The outcome in a sentence."""
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one), aligned_model, unaligned_model."""
    settings: dict[str, JsonValue]
    """The ``tuning`` section, without where things lie."""
    utility: str
    """Task and metric of the development split."""
    higher_is_better: bool
    worst_change: float | None
    """What the limits of utility ask, against the fine-tuned adapter, in the metric's own unit."""
    candidates: tuple[TunedCandidate, ...]
    """The best first, those dropped first last."""
    references: dict[str, float | None]
    """Utility of the aligned model and of the fine-tuned adapter on the development split."""
    cost: TuneCost
    final: tuple[TunedArm, ...] = ()
    """Arms on the final split, which the choice never saw."""
    warnings: tuple[str, ...] = ()

    @property
    def winner(self) -> TunedCandidate:
        """The candidate that was chosen.

        Raises:
            DataError: none was.
        """
        for candidate in self.candidates:
            if candidate.name == self.chosen:
                return candidate
        raise DataError(f"choice of a merge: expected a candidate that was chosen, got none: {self.summary}")
