"""Frozen results that steps write, MLflow stores and the gate reads.

Every record is plain data: it round-trips through JSON unchanged and loads no
heavy library. Rates and cosines lie in [0, 1]; a figure that could not be had is
``None``, never 0 and never NaN.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from safemerge.described import FORMAT_VERSION, Record

MERGE_REPORT_FILE = "safemerge_report.json"
"""In the folder of a merged adapter."""
EVALUATION_REPORT_FILE = "report.json"
"""In the folder of an evaluation."""
RESPONSES_FILE = "responses.jsonl"
"""Beside it: every prompt, answer and flag, a line each."""
RESPONSES_TABLE = "responses.json"
"""The same as a table of MLflow."""


def json_digest(data: object) -> str:
    """Sha256 of plain data in canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def printable(text: str) -> str:
    """The text with a replacement character for everything that could steer a terminal or break a file.

    Names of suites and categories come from data, and may hold escape sequences, marks that
    turn the direction of writing, or halves of characters. White space becomes single spaces.
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def valid_unicode(text: str) -> str:
    r"""The text with lone surrogates, which no file and no tokenizer can hold, replaced by U+FFFD.

    >>> valid_unicode("a\ud800b") == "a\ufffdb"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


Printable = Annotated[str, AfterValidator(printable)]
"""Text that people typed or data hold, safe to show on a terminal."""


class Interval(Record):
    """A two-sided confidence interval."""

    low: float
    high: float
    confidence: float = 0.95


class Estimate(Record):
    """A figure with its interval, such as a difference between two arms."""

    value: float
    interval: Interval
    n: int
    """Number of prompts or documents."""


# --- merge -----------------------------------------------------------------


class LayerReport(Record):
    """What happened to one LoRA-adapted weight matrix."""

    module: str
    """Full module path, such as ``model.layers.0.self_attn.q_proj``."""
    cosine: float | None
    """ρ, the projected cosine, in [0, 1]; None where it is undefined."""
    merged: bool
    """Whether the layer left the safe subspace and was merged."""
    reason: str
    """Why, in a few words."""
    task_norm: float | None = None
    """Frobenius norm of ΔW_task."""
    safety_norm: float | None = None
    """Frobenius norm of ΔW_safety; None where the safety adapter lacks the layer."""
    error: float | None = None
    """Relative error (Frobenius norm) with which the update is stored; None where it is stored as it is."""
    weights: tuple[float, float] | None = None
    """[task, safety] of this layer, where each has its own, as with the method ``learned``."""


class MergeReport(Record):
    """``safemerge_report.json``: how a merged adapter came about."""

    format_version: int = FORMAT_VERSION
    safemerge_version: str
    method: str
    threshold: float | None
    """τ: layers with a cosine below it are merged; None where layers were not chosen by a cosine."""
    quantile: float | None = None
    """The share of layers asked for, where the threshold was derived from it."""
    weights: tuple[float, float]
    """[task, safety] of merged layers; the means over all where each has its own."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """All that was chosen, by the names of a config file's ``merge`` section."""
    rank: int | None = None
    """Rank that the adapter is stored at; the largest where layers differ."""
    digests: dict[str, str]
    """sha256 of task_adapter, safety_adapter (where there is one), aligned_model, unaligned_model."""
    layers: tuple[LayerReport, ...]
    safety_only_layers: tuple[str, ...] = ()
    """Layers that only the safety adapter has; left out of the merge."""
    warnings: tuple[str, ...] = ()
    """What a reader must know, such as that the adapters name different base models."""


# --- evaluation --------------------------------------------------------------


class SuiteKind(StrEnum):
    """What a flagged response means for a suite of prompts."""

    HARMFUL = "harmful"
    """Harmful requests: a response is flagged when the model complied."""
    OVER_REFUSAL = "over_refusal"
    """Harmless requests: a response is flagged when the model refused."""


class JudgeRecord(Record):
    """Which judge gave the flags."""

    id: str
    revision: str
    smoke: bool
    """True for judges that are too coarse for a release decision, such as refusal phrases."""
    threshold: float | None = None
    """Probability from which an answer is flagged; None for judges that give no probability."""


Protocol = Annotated[dict[str, JsonValue], Field(min_length=1)]
"""How a figure was measured, whatever the arm. Figures compare only where it is the same as a whole."""


MAX_ERROR = 0.05
"""Largest probability with which a suite that was stopped early may mislead."""


class Stopped(Record):
    """That a suite was not asked to its end, as what was left could not change the verdict."""

    planned: Annotated[int, Field(gt=0)]
    """Prompts of the whole suite."""
    planned_categories: dict[str, int] = Field(default_factory=dict)
    """Category to its prompts in the whole suite."""
    error: Annotated[float, Field(ge=0, le=MAX_ERROR)]
    """Probability, at most, that the whole suite's figure is none that an interval says is possible; for each
    of its intervals (the suite's own and those of categories) at all times of looking together."""
    seed: int
    """Of the random order in which prompts were asked."""


class SuiteReport(Record):
    """Flags and rate of one suite of prompts."""

    suite: str
    kind: SuiteKind
    judge: JudgeRecord
    prompts_digest: str
    """sha256 of the prompts asked."""
    protocol: Protocol
    """How the prompts were answered: decoding and its limits."""
    flags: dict[str, bool]
    """Prompt id to flag."""
    categories: dict[str, str] = Field(default_factory=dict)
    """Prompt id to the category that its suite gives it; empty where there are none."""
    rate: float | None = Field(ge=0, le=1)
    """Share of flagged prompts; None where no prompt was judged."""
    interval: Interval | None
    """Two-sided Wilson interval of the rate. Of a suite that was stopped early, it holds those of all final
    counts that are still possible."""
    stopped: Stopped | None = None
    """None where every prompt was asked."""

    @property
    def n(self) -> int:
        """Number of prompts judged."""
        return len(self.flags)

    @property
    def planned(self) -> int:
        """Number of prompts that the whole suite has."""
        return self.stopped.planned if self.stopped else self.n


class UtilityReport(Record):
    """One lm-eval task and metric."""

    task: str
    metric: str
    higher_is_better: bool
    """The metric's direction as lm-eval states it."""
    value: float | None
    """lm-eval's aggregate; None where it is missing or not finite."""
    scores: dict[str, float]
    """Document id to its score; empty where the metric has no per-document form."""
    task_digest: str
    """sha256 of the resolved task config and its documents."""
    protocol: Protocol
    """What was asked of lm-eval: filter, examples in the prompt, chat template, limit, seed."""


class EvaluationReport(Record):
    """Everything measured of one arm."""

    format_version: int = FORMAT_VERSION
    arm: str
    """aligned, fine_tuned, safemerge, scale, scale_selected, or a name of the user's."""
    adapter_digest: str | None
    """sha256 of the adapter; None for the aligned model itself."""
    model_digest: str
    served_as: str | None = None
    """Name under which a server answered as this arm, taken at its word; None where the weights of the
    digests above were loaded to measure them."""
    utility: UtilityReport | None
    suites: tuple[SuiteReport, ...]
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    """Where they were measured: device, number format, batch sizes, library versions. These move
    a figure by rounding only, so a difference between arms is a warning of the gate."""


# --- gate ----------------------------------------------------------------------


class Outcome(StrEnum):
    """How a rule of the gate came out. Only PASS and NOT_APPLICABLE let a release through."""

    PASS = "pass"  # noqa: S105 (no password)
    FAIL = "fail"
    CANNOT_JUDGE = "cannot_judge"
    """A figure is missing, not finite or not comparable."""
    CANNOT_TELL = "cannot_tell"
    """All figures are there, but they do not decide the rule, as where prompts are too few."""
    NOT_APPLICABLE = "not_applicable"
    """There is nothing to compare with, and rightly so: no champion yet."""


class Verdict(StrEnum):
    """What the gate says of an adapter. Only PASS ships."""

    PASS = "pass"  # noqa: S105 (no password)
    BLOCK = "block"
    CANNOT_TELL = "cannot_tell"
    """No rule is broken, but the data cannot decide one, and the policy wants a person asked."""


class RuleOutcome(Record):
    """One rule of the policy, applied."""

    rule: str
    """Name of the policy field, dotted where it is nested."""
    subject: str
    """Suite, suite and category, or task that the rule looked at."""
    figure: float | None
    limit: float | None
    """None where the rule compares no figure, such as that two reports belong together."""
    outcome: Outcome
    explanation: Annotated[str, AfterValidator(printable)]
    """One sentence that a release manager understands, safe to show on a terminal."""
    interval: Interval | None = None
    """Interval of what was measured, where the rule looked at one."""


MAIN_RULES = ("max_harmful_rate", "max_over_refusal_rate", "min_utility", "min_gain_kept")
SMOKE_MARK = " (smoke judge)"
"""Follows a verdict in words where a smoke judge gave any of the flags that it rests on."""
SUMMARY_LENGTH = 2000
"""Characters of a verdict's one line: it becomes a tag, a description and the message of a failed task."""


class GateDecision(Record):
    """The verdict: pass only where every rule that applies passed."""

    format_version: int = FORMAT_VERSION
    arm: str
    adapter_digest: str | None
    passed: bool
    """Whether the verdict is a pass."""
    verdict: Verdict
    sign_off: bool = False
    """Whether the policy wants a person's signature even where all rules passed."""
    rules: tuple[RuleOutcome, ...]
    policy_digest: str
    champion_digest: str | None = None
    """sha256 of the champion's adapter that it was compared with; None where it was with none."""
    smoke_judge: bool
    """Whether a smoke judge gave any of the flags that this rests on."""
    warnings: tuple[Annotated[str, AfterValidator(printable)], ...] = ()
    """What a reader must know, such as which smoke judge was used."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, data: Any) -> Any:
        """Decisions had no third verdict once; ``passed`` said it all."""
        if isinstance(data, dict) and "verdict" not in data:
            return data | {"verdict": Verdict.PASS if data.get("passed") is True else Verdict.BLOCK}
        return data

    @model_validator(mode="after")
    def _follows_from_its_rules(self) -> Self:
        if not self.rules:
            raise ValueError("expected the rules that the verdict rests on, got none")
        possible = possible_verdicts(self.rules)
        if self.passed != (self.verdict is Verdict.PASS) or self.verdict not in possible:
            raise ValueError(
                f"expected a verdict that follows from its rules ({' or '.join(possible)}), "
                f"got {self.verdict} with passed={self.passed}"
            )
        return self

    @property
    def compares_with_champion(self) -> bool:
        """Whether any of its rules is about the champion, even if there was none yet."""
        return any(rule.rule.startswith("against.champion.") for rule in self.rules)

    @property
    def wants_person(self) -> bool:
        """Whether a person decides if it ships: never where it is blocked."""
        return self.verdict is Verdict.CANNOT_TELL or (self.passed and self.sign_off)

    def main_figures(self) -> tuple[str, ...]:
        """What the rules about the candidate's own figures found: a few lines for a message."""
        return tuple(rule.explanation for rule in self.rules if rule.rule in MAIN_RULES)

    def summary(self) -> str:
        """The verdict and every rule that kept it from passing: one line of at most 2000 characters."""
        missed = "; ".join(
            r.explanation for r in self.rules if r.outcome not in (Outcome.PASS, Outcome.NOT_APPLICABLE)
        )
        said = self.verdict.replace("_", " ").upper()
        verdict = f"{said}{SMOKE_MARK if self.smoke_judge else ''}"
        idle = sum(r.outcome is Outcome.NOT_APPLICABLE for r in self.rules)
        met = f"met all {len(self.rules) - idle} rules{f' ({idle} not applicable)' if idle else ''}"
        signature = "; the policy wants a person's signature" if self.wants_person else ""
        found = f"{met}{signature}" if self.passed else missed
        line = " ".join(f"{verdict}: {printable(self.arm)}{' ' if self.passed else ': '}{found}".split())
        return line if len(line) <= SUMMARY_LENGTH else f"{line[: SUMMARY_LENGTH - 1]}…"


class Approval(Record):
    """What a person answered who was asked whether an adapter may ship: yes, or no.

    Elsewhere in the package an answer is a model's, to a prompt.
    """

    approved: bool
    by: Printable | None
    """Who answered; None where nobody did in time."""
    at: Printable
    """When, in ISO 8601."""
    reason: Printable = ""
    decision_digest: str
    """sha256 of the decision that the person was shown."""
    adapter_digest: str
    """sha256 of the adapter that it is about."""

    @property
    def valid(self) -> bool:
        """Whether it lets an adapter ship: an approval by somebody, with a reason."""
        return self.approved and bool(self.by) and bool(self.reason)

    def says(self) -> str:
        """The answer in one line."""
        if self.by is None and not self.approved:
            return f"rejected: nobody had answered by {self.at}"
        if self.approved and not self.valid:
            return f"not approved: expected who approved and a reason, got {self.by or 'nobody'} without one"
        what = "approved" if self.approved else "rejected"
        return f"{what} by {self.by} at {self.at}: {self.reason or 'no reason given'}"


def possible_verdicts(rules: Iterable[RuleOutcome]) -> tuple[Verdict, ...]:
    """The verdicts that rules allow, the first by default: two where the policy says what follows."""
    outcomes = {rule.outcome for rule in rules}
    if outcomes & {Outcome.FAIL, Outcome.CANNOT_JUDGE}:
        return (Verdict.BLOCK,)
    if Outcome.CANNOT_TELL in outcomes:
        return (Verdict.BLOCK, Verdict.CANNOT_TELL)
    return (Verdict.PASS,) if Outcome.PASS in outcomes else (Verdict.BLOCK,)


# --- pipeline ------------------------------------------------------------------


class ArtifactRef(Record):
    """An artifact that one step hands to the next, wherever they run."""

    uri: str
    """A folder, ``runs:/<run id>/<path>`` or ``models:/<name>@<alias>``."""
    digest: str
    """sha256 of its content; checked after each download."""

    @property
    def run_id(self) -> str:
        """The MLflow run that holds it, where it is in one."""
        return self.uri.removeprefix("runs:/").partition("/")[0]

    @property
    def folder(self) -> str:
        """URI of the folder that holds it."""
        return self.uri.rpartition("/")[0]


class StepResult(Record):
    """What a pipeline step returns to its scheduler."""

    step: str
    run_id: str
    """MLflow run that holds the step's metrics and artifacts."""
    inputs_digest: str
    """sha256 of everything that the step's outputs depend on."""
    outputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    figures: dict[str, float | str | bool | None] = Field(default_factory=dict)
    """A few figures worth showing in a log line."""
    reused: bool = False
    """True where an earlier run had done the step with the same inputs."""
