"""The few figures of a pipeline run that lists and charts of runs show, as one tag of its MLflow run.

One tag and no metrics: a search takes MLflow about as long as the rows it reads, and a metric
of every suite and end of an interval would double what a list of runs costs. The figures are not
rounded: what shows them does that, and one that is rounded twice differs from the report's.
"""

from __future__ import annotations

from collections.abc import Mapping

from safemerge.arms import CANDIDATE
from safemerge.described import Record
from safemerge.records import EvaluationReport, Interval, SuiteKind, UtilityReport
from safemerge.stats import wilson_interval
from safemerge.tracking import tags


class SuiteFigure(Record):
    """Share of flagged prompts of one suite."""

    kind: SuiteKind
    rate: float | None
    interval: Interval | None
    n: int
    """Prompts judged."""
    planned: int | None = None
    """Prompts of the whole suite, where it was stopped early. Tags of earlier versions never say so."""


class UtilityFigure(Record):
    """One task and metric."""

    task: str
    metric: str
    value: float | None
    interval: Interval | None
    """Wilson interval; None where the scores are not right or wrong."""


class ArmFigures(Record):
    """What was measured of one arm."""

    suites: dict[str, SuiteFigure]
    utility: UtilityFigure | None


class RunFigures(Record):
    """What was measured in one pipeline run, by the arm's part in it."""

    arms: dict[str, ArmFigures]
    """``candidate``, and the arms that it was compared with: ``aligned``, ``fine_tuned``."""

    def to_tag(self) -> str:
        """JSON that fits into a tag; the arms that do not fit are left out, the candidate as the last."""
        names = sorted(self.arms, key=lambda name: name != CANDIDATE)
        for count in range(len(names), -1, -1):
            kept = RunFigures(arms={name: self.arms[name] for name in names[:count]})
            text = kept.model_dump_json(exclude_defaults=True)
            if len(text) <= tags.MAX_CHARACTERS:
                break
        return text


def run_figures(reports: Mapping[str, EvaluationReport]) -> RunFigures:
    """The figures of a run's evaluations, by the arm's part in it."""
    return RunFigures(arms={name: _arm_figures(report) for name, report in reports.items()})


def _arm_figures(report: EvaluationReport) -> ArmFigures:
    return ArmFigures(
        suites={
            suite.suite: SuiteFigure(
                kind=suite.kind,
                rate=suite.rate,
                interval=suite.interval,
                n=suite.n,
                planned=suite.planned if suite.stopped else None,
            )
            for suite in report.suites
        },
        utility=_utility_figure(report.utility) if report.utility else None,
    )


def _utility_figure(utility: UtilityReport) -> UtilityFigure:
    scores = list(utility.scores.values())
    right_or_wrong = bool(scores) and set(scores) <= {0.0, 1.0}
    interval = wilson_interval(round(sum(scores)), len(scores)) if right_or_wrong else None
    return UtilityFigure(
        task=utility.task,
        metric=utility.metric,
        value=utility.value,
        interval=interval,
    )
