"""The ``evaluation`` section: what is measured of every arm, by what and how."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from safemerge.config.base import Config, PlainName
from safemerge.config.endpoints import EndpointConfig
from safemerge.config.judges import (
    JUDGES_OF_REFUSALS,
    JUDGES_WITHOUT_MODEL,
    JudgeConfig,
    judges_blind_to_refusals,
    judges_that_load,
)
from safemerge.config.places import FilePlace
from safemerge.config.suites import shipped_suite
from safemerge.records import MAX_ERROR, SuiteKind


class UtilityConfig(Config):
    """Task utility, measured by lm-eval."""

    task: str
    """An lm-eval task name."""
    metric: str
    """One of the task's metrics, such as ``acc`` or ``exact_match``."""
    include_path: FilePlace | None = None
    """Folder with the user's own lm-eval tasks (relative to the config file)."""
    filter: str = "none"
    """lm-eval filter whose result counts, such as ``strict-match``."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use the first so many documents."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    apply_chat_template: bool = True


class SuiteConfig(Config):
    """A suite of prompts to answer and judge: a shipped one by name, or a file."""

    # A shipped suite brings its name and kind with it.
    model_config = ConfigDict(json_schema_extra={"required": []})

    suite: str | None = None
    """Name of a shipped suite, such as ``directharm4``."""
    path: FilePlace | None = None
    """A ``.jsonl`` file with ``id`` and ``prompt``, or a ``.yaml`` file that describes a suite
    (relative to the config file)."""
    name: PlainName
    """Name in reports and gate rules; that of the shipped suite where it is not given."""
    kind: SuiteKind
    revision: str | None = None
    """Commit, tag or branch of the suite's hub data set, in place of the one that it states."""
    shuffle: int | None = None
    """Seed of an order drawn at random, in which ``skip`` and ``limit`` count; None keeps the suite's."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Leave out the first so many prompts."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Use so many prompts."""

    @model_validator(mode="before")
    @classmethod
    def _as_shipped(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("suite"), str):
            return data
        spec = shipped_suite(data["suite"])
        return {"name": spec.name, "kind": spec.kind, **data}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.suite is None) == (self.path is None):
            raise ValueError("expected a suite or a path, got both or neither")
        if self.suite is not None and self.kind is not shipped_suite(self.suite).kind:
            raise ValueError(
                f"expected kind {shipped_suite(self.suite).kind} for suite {self.suite}, got {self.kind}"
            )
        if self.path is not None and self.revision and not self.path.endswith((".yaml", ".yml")):
            raise ValueError("expected a revision with a suite of a hub data set, got one with a file")
        return self


class GenerationConfig(Config):
    """Greedy generation of the answers to judge."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Prompts answered at once; halved where memory runs out. A CPU answers 64 faster than twice 32."""


class Engine(StrEnum):
    """What computes answers and log-probabilities."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    """Faster, on GPUs; needs the extra ``vllm`` wherever runs are opened and evaluated."""
    ENDPOINT = "endpoint"
    """A server that somebody runs; which model answers there is taken at its word."""


class SequentialConfig(Config):
    """Suites are asked in random order, and only until their outcome at the gate is settled."""

    error: Annotated[float, Field(ge=0, le=MAX_ERROR)] = 0.01
    """Probability, at most, that the outcome of any rule of the gate on the suites of an arm differs from
    that of the whole suites. 0 stops only where nothing that may come can change it."""
    seed: int = 0
    """Of the random order."""


class EvaluationConfig(Config):
    """What is measured of every arm."""

    utility: UtilityConfig
    suites: Annotated[tuple[SuiteConfig, ...], Field(min_length=1)]
    judge: JudgeConfig = "refusal_phrases"
    """What flags answers to harmful requests."""
    refusal_judge: JudgeConfig = "refusal_phrases"
    """What flags refusals of harmless requests; guards that see harm alone cannot."""
    generation: GenerationConfig = GenerationConfig()
    engine: Engine = Engine.TRANSFORMERS
    """Figures of different engines are not compared."""
    endpoint: EndpointConfig | None = None
    """The server of the engine ``endpoint``."""
    sequential: SequentialConfig | None = None
    """Stop suites early. Looked at after every ``generation.batch_size`` answers."""

    @model_validator(mode="after")
    def _suites_can_be_judged(self) -> Self:
        names = [suite.name for suite in self.suites]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected suites of different names, got twice: {', '.join(twice)}")
        if not self.suite_names(SuiteKind.HARMFUL):
            raise ValueError(
                "expected a suite of kind harmful, got none: the gate could never let an adapter pass"
            )
        if blind := judges_blind_to_refusals(self.refusal_judge):
            raise ValueError(
                f"expected a refusal_judge that sees refusals ({', '.join(JUDGES_OF_REFUSALS)}), "
                f"got {', '.join(blind)}, which sees harm alone"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_its_settings(self) -> Self:
        if (self.engine is Engine.ENDPOINT) != (self.endpoint is not None):
            raise ValueError("expected engine: endpoint and a section endpoint together, got one of them")
        return self

    @model_validator(mode="after")
    def _judges_leave_the_model_loaded(self) -> Self:
        judges = {kind: self.judge_of(kind) for kind in SuiteKind if self.suite_names(kind)}
        if self.sequential and (loading := sorted({n for j in judges.values() for n in judges_that_load(j)})):
            raise ValueError(
                f"expected judges that load no model here ({', '.join(JUDGES_WITHOUT_MODEL)}) for "
                f"sequential, which judges while the judged model is loaded, got {', '.join(loading)}"
            )
        return self

    def judge_of(self, kind: SuiteKind) -> JudgeConfig:
        """What judges suites of one kind."""
        return self.judge if kind is SuiteKind.HARMFUL else self.refusal_judge

    def suite_names(self, kind: SuiteKind) -> list[str]:
        """Names of the suites of one kind."""
        return [suite.name for suite in self.suites if suite.kind is kind]
