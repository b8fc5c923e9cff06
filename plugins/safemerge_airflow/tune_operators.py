"""Operators that choose a merge on the development split.

Whether there is anything to choose, what is learned, all candidates, rounds that are mapped, the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.providers.standard.operators.branch import BaseBranchOperator
from airflow.sdk.exceptions import AirflowFailException

from safemerge.arms import ALIGNED, FINE_TUNED
from safemerge_airflow.operators import Artifact, DeviceStepOperator, SafemergeStepOperator

MeasuredCandidate = Mapping[str, Any]
"""What a mapped :class:`TuneEvaluateOperator` pushes: candidate, round and report."""
PROPOSAL = "proposal"


class TuneBranchOperator(BaseBranchOperator):
    """Lets only those tasks run that the run needs, so that no other takes a device's slot to find that out.

    Args:
        tuning: whether the run chooses its merge, as ``open_run`` knows; None lets the tasks find out, as
            where an older version opened the run.
        learning: the same of coefficients that are learned for the choice.
        propose: id of the task that writes the candidates.
        learn: id of the task that learns.
    """

    template_fields = ("tuning", "learning")

    def __init__(
        self, *, tuning: bool | None, learning: bool | None, propose: str, learn: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.tuning = tuning
        self.learning = learning
        self.propose = propose
        self.learn = learn

    def choose_branch(self, context: Any) -> list[str]:
        """Ids of the tasks that run; those that follow them are skipped where they are."""
        wanted = {self.propose: self.tuning, self.learn: self.learning}
        return [task_id for task_id, is_wanted in wanted.items() if is_wanted is not False]


class LearnOperator(DeviceStepOperator):
    """Fits coefficients to the training data; pushes ``coefficients``, a folder with a file for each λ.

    Args:
        task_adapter: the adapter to repair.
        safety_adapter: the adapter that carries safety.
    """

    step = "learn"
    step_inputs = ("task_adapter", "safety_adapter")
    template_fields = ("run_id", *step_inputs)

    def __init__(
        self, *, task_adapter: Artifact | None, safety_adapter: Artifact | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.task_adapter = task_adapter
        self.safety_adapter = safety_adapter


class ProposeOperator(DeviceStepOperator):
    """Writes every candidate; pushes a list of whom to measure first, ``proposal`` and ``pipeline_run``.

    Args:
        task_adapter: the adapter to repair.
        safety_adapter: the adapter that carries safety.
        coefficients: what was learned, each file of which is a candidate; None where nothing was.
    """

    step = "propose"
    step_inputs = ("task_adapter", "safety_adapter", "coefficients")
    template_fields = ("run_id", *step_inputs)

    def __init__(
        self,
        *,
        task_adapter: Artifact | None,
        safety_adapter: Artifact | None,
        coefficients: Artifact | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": False} | kwargs)
        self.task_adapter = task_adapter
        self.safety_adapter = safety_adapter
        self.coefficients = coefficients

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Propose; gives the aligned model, the fine-tuned adapter and all candidates."""
        outputs = self.xcoms(self.run_step(context))
        outputs.pop("run_id")
        # Tasks that take the run's id from here are skipped with this one where nothing is to be chosen.
        context["ti"].xcom_push("pipeline_run", self.run_id)
        context["ti"].xcom_push(PROPOSAL, outputs.pop(PROPOSAL))
        references = {ALIGNED: None, FINE_TUNED: self.task_adapter}
        return _listed(references | outputs)


class TuneEvaluateOperator(DeviceStepOperator):
    """Measures one candidate in one round; pushes ``report`` with ``candidate`` and ``round``.

    Args:
        candidate: its name; ``aligned`` and ``fine_tuned`` in round 0.
        round: the round's number.
        adapter: its adapter; None for the aligned model.
    """

    step = "tune_evaluate"
    step_inputs = ("adapter",)
    step_options = ("candidate", "round")
    template_fields = ("run_id", "candidate", "round", "adapter")

    def __init__(self, *, candidate: str, round: int, adapter: Artifact | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.candidate = candidate
        self.round = round
        self.adapter = adapter

    def xcoms(self, result: Any) -> dict[str, Any]:
        """What the round's end reads."""
        return super().xcoms(result) | {"candidate": self.candidate, "round": self.round}


class _RaceOperator(SafemergeStepOperator):
    """A step that replays the race from all reports so far.

    Args:
        proposal: the candidates.
        reports: a sequence of rounds, each of what its mapped tasks pushed.
    """

    template_fields: Sequence[str] = ("run_id", "proposal", "reports")
    ui_color = "#f3e3c8"

    def __init__(
        self,
        *,
        proposal: Artifact | None,
        reports: Sequence[Iterable[MeasuredCandidate] | None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.proposal = proposal
        self.reports = reports

    def inputs(self) -> dict[str, Any]:
        """The candidates, and every report by round and candidate.

        After a run was cleared, what mapped tasks pushed that it no longer has comes behind what the others
        have pushed: the first of a name is the one that counts.
        """
        found: dict[str, Any] = {PROPOSAL: self.proposal}
        for measured in (measured for rounds in self.reports for measured in rounds or () if measured):
            found.setdefault(f"{measured['round']}/{measured['candidate']}", measured["report"])
        return found


class AdvanceOperator(_RaceOperator):
    """Says who is measured in the next round; pushes a list of them, the best first.

    Args:
        round: the round that is to follow.
    """

    step = "advance"
    step_options = ("round",)
    template_fields = ("run_id", "proposal", "reports", "round")

    def __init__(self, *, round: int, **kwargs: Any) -> None:
        super().__init__(**{"multiple_outputs": False} | kwargs)
        self.round = round

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Advance; an empty list ends the rounds, and those that follow are skipped."""
        outputs = self.xcoms(self.run_step(context))
        outputs.pop("run_id")
        return _listed(outputs)


class ChooseOperator(_RaceOperator):
    """Says which candidate is merged; pushes ``choice``, and ``coefficients`` where it has some.

    Fails where no candidate keeps the limits.
    """

    step = "choose"

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Choose; everything is recorded before the task fails.

        Raises:
            AirflowFailException: none keeps the limits; says which limit each misses.
        """
        result = self.run_step(context)
        xcoms = self.xcoms(result)
        self.log.info("%s", result.figures.get("summary"))
        if not result.figures.get("chosen"):
            for key, value in xcoms.items():
                context["ti"].xcom_push(key, value)
            raise AirflowFailException(str(result.figures.get("summary", "no candidate was chosen")))
        return xcoms


def _listed(adapters: Mapping[str, Artifact | None]) -> list[dict[str, Any]]:
    """Arguments of a mapped task, one a candidate."""
    return [{"candidate": name, "adapter": adapter} for name, adapter in adapters.items()]
