"""Candidates of a race and what is measured of them, without a model."""

from __future__ import annotations

from collections.abc import Mapping

from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.tuning import TuningConfig
from safemerge.engine.race import UTILITY_ROUND, Race, Reports, read_split, round_settings
from safemerge.evaluation.suites import read_suite
from safemerge.records import EvaluationReport, JudgeRecord, SuiteKind, SuiteReport, UtilityReport
from safemerge.stats import wilson_interval


def report(
    adapter: str | None,
    utility: float | None = None,
    suites: Mapping[str, Mapping[str, bool]] | None = None,
    spread: float = 0.0,
) -> EvaluationReport:
    scores = {}
    if utility is not None:
        scores = {str(i): utility + 0.01 * i + (-1) ** i * spread for i in range(20)}
    judge = JudgeRecord(id="j", revision="1", smoke=True)
    found = []
    for name, flags in (suites or {}).items():
        count = sum(flags.values())
        found.append(
            SuiteReport(
                suite=name,
                kind=SuiteKind.HARMFUL if name == "harm" else SuiteKind.OVER_REFUSAL,
                judge=judge,
                prompts_digest="p",
                protocol={"engine": "e"},
                flags=dict(flags),
                rate=count / len(flags),
                interval=wilson_interval(count, len(flags)),
            )
        )
    measured = None
    if utility is not None:
        measured = UtilityReport(
            task="dev",
            metric="acc",
            higher_is_better=True,
            value=sum(scores.values()) / len(scores),
            scores=scores,
            task_digest="t",
            protocol={"limit": None},
        )
    return EvaluationReport(
        arm="x", adapter_digest=adapter, model_digest="m", utility=measured, suites=tuple(found)
    )


class Judge:
    """Answers for candidates: so many of their harmful prompts are flagged, the first ones asked."""

    def __init__(self, tuning: TuningConfig, harm: Mapping[str, int], utility: Mapping[str, float]) -> None:
        self.tuning, self.harm, self.utility = tuning, harm, utility
        self.split = read_split(tuning)
        self.race = Race(tuning, dict.fromkeys(harm, 3), self.split)
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.order = [prompt.id for prompt in self.split[0].prompts]

    def run(self):
        found: dict[str, list[EvaluationReport]] = {name: [] for name in self.harm}
        reports = Reports(report(None, 0.0), report("f", 1.0), found)
        while (stage := self.race.stage(reports)).round is not None:
            self.asked.append((stage.round, stage.names))
            for name in stage.names:
                found[name].append(self.measure(name, stage.round))
        return reports, stage

    def measure(self, name: str, number: int) -> EvaluationReport:
        evaluation = EvaluationConfig.model_validate(
            {
                "utility": {"task": "final", "metric": "acc"},
                "suites": [s.model_dump() for s in self.tuning.suites],
            }
        )
        settings = round_settings(evaluation, self.tuning, self.race.sizes, number)
        if number == UTILITY_ROUND:
            assert settings.utility.task == "dev"
            assert settings.suites == ()
        utility = None
        if number in self.race.scorings:
            self.scored(name, settings.utility.limit)
            utility = self.utility.get(name, 0.95)
        flags = {}
        for suite in map(read_suite, settings.suites):
            bad = self.order[: self.harm[name]] if suite.name == "harm" else []
            flags[suite.name] = {prompt.id: prompt.id in bad for prompt in suite.prompts}
        return report(name, utility, suites=flags)

    def scored(self, name: str, limit: int | None) -> None:
        """Told of every scoring of utility."""
