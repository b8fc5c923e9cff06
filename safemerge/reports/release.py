"""All that a person who signs a release needs, as one record."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from safemerge import arms
from safemerge.described import FORMAT_VERSION, Record
from safemerge.records import Approval, Estimate, GateDecision, Interval, JudgeRecord, MergeReport, SuiteKind

RELEASE_REPORT_FILE = "report.json"
"""In the folder of a release report."""
RELEASE_PAGE_FILE = "report.html"
"""Beside it, for people."""


class Role(StrEnum):
    """What an arm is to the gate."""

    CANDIDATE = arms.CANDIDATE
    ALIGNED = arms.ALIGNED
    FINE_TUNED = arms.FINE_TUNED
    CHAMPION = arms.CHAMPION
    OTHER = "other"
    """Shown beside the others; the gate does not look at it."""


class SuiteFigures(Record):
    """What one suite says of an arm."""

    suite: str
    kind: SuiteKind
    judge: JudgeRecord
    rate: Estimate | None
    """Share of flagged prompts; None where the report lacks it or contradicts itself."""
    planned: int
    """Prompts of the whole suite; more than were asked where it was stopped early."""
    categories: dict[str, Estimate] = Field(default_factory=dict)
    """Category to its rate."""


class ArmFigures(Record):
    """One arm's line in the table."""

    arm: str
    """Key of the arm in the transcripts."""
    title: str
    """What people call it."""
    role: Role
    adapter_digest: str | None
    utility: float | None
    utility_interval: Interval | None = None
    """None where the metric has no scores by document."""
    gain_kept: Estimate | None = None
    """Share of what fine-tuning gained that is left."""
    gain_note: str = ""
    """Why there is no such share, opened by the gate's word for that: "cannot judge" or "cannot tell"."""
    differs: tuple[str, ...] = ()
    """In what it was not measured as the candidate was: then their figures do not compare."""
    suites: tuple[SuiteFigures, ...]


class UtilityMetric(Record):
    """What utility is, and what the policy asks of it."""

    task: str
    metric: str
    higher_is_better: bool
    worst: float | None = None
    """Worst utility that the policy allows, in the metric's unit; None where it asks nothing."""


class ShownAnswer(Record):
    """What an arm said to a prompt."""

    response: str
    omitted: int = 0
    """Characters left out at the end."""
    flag: bool
    """As its suite's judge flagged it."""


class Transcript(Record):
    """A prompt and the answers of all arms that have one."""

    suite: str
    kind: SuiteKind
    id: str
    category: str | None
    prompt: str
    omitted: int = 0
    """Characters of the prompt left out at the end."""
    answers: dict[str, ShownAnswer]
    """Arm to answer."""

    @property
    def changed(self) -> bool:
        """Whether arms were flagged differently."""
        return len({answer.flag for answer in self.answers.values()}) > 1


class Provenance(Record):
    """Where the figures come from, so that they can be had again."""

    created: str
    """Date and time in UTC, ISO 8601."""
    safemerge_version: str
    name: str | None = None
    """The pipeline's name."""
    models: dict[str, str] = Field(default_factory=dict)
    """aligned_model and unaligned_model to folder or hub id, as configured."""
    datasets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """task_training and safety_training to their data, as configured."""
    seeds: dict[str, int] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    """sha256 of models, data, suites, task and policy."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the candidate was measured: device, number format, library versions."""
    protocols: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Suite, or task of the utility, to how it was measured."""
    runs: dict[str, str] = Field(default_factory=dict)
    """Step to the MLflow run that holds it."""


class ReleaseReport(Record):
    """``report.json``: all that a person who signs a release needs, verdict first."""

    format_version: int = FORMAT_VERSION
    decision: GateDecision
    policy: dict[str, JsonValue]
    """The policy that it was judged by."""
    utility: UtilityMetric | None
    arms: tuple[ArmFigures, ...]
    """Aligned, fine-tuned, champion, candidate, then the others."""
    findings: tuple[str, ...] = ()
    """What fine-tuning did to harmfulness and what the repair undid, in sentences."""
    merge: MergeReport | None = None
    """How the candidate came about; None where nobody said."""
    prompts: int
    """Prompts that any arm answered in writing."""
    transcripts: tuple[Transcript, ...] = ()
    """As many of them as are shown, changed ones first; ``transcripts.jsonl`` holds all, uncut."""
    provenance: Provenance
    answer: Approval | None = None
    """What a person said about the decision; None where nobody was asked, or had not answered yet."""

    @property
    def candidate(self) -> ArmFigures:
        """The arm that was judged."""
        return next(arm for arm in self.arms if arm.role is Role.CANDIDATE)
