"""What the operators of the choice hand from round to round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from safemerge.records import ArtifactRef, StepResult
from safemerge_airflow.tune_operators import (
    AdvanceOperator,
    ChooseOperator,
    LearnOperator,
    ProposeOperator,
    TuneBranchOperator,
    TuneEvaluateOperator,
)

TASK = {"uri": "runs:/t/adapter", "digest": "t"}
PROPOSAL = {"uri": "runs:/p/proposal.json", "digest": "p"}


def result(figures: dict[str, Any] | None = None, **outputs: dict[str, str]) -> StepResult:
    refs = {name: ArtifactRef(**ref) for name, ref in outputs.items()}
    return StepResult(step="s", run_id="own", inputs_digest="d", outputs=refs, figures=figures or {})


class Pushed:
    """A task instance that remembers what was pushed."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.values[key] = value


def execute(operator: Any, step: StepResult) -> tuple[Any, dict[str, Any]]:
    """The operator's own work around a step, which runs elsewhere."""
    pushed = Pushed()
    operator.run_step = lambda context: step
    return operator.execute({"ti": pushed, "dag_run": SimpleNamespace()}), pushed.values


def test_a_proposal_starts_with_references_and_all_candidates() -> None:
    operator = ProposeOperator(task_id="p", run_id="run", task_adapter=TASK, safety_adapter=TASK)
    a = {"uri": "runs:/p/a", "digest": "a"}
    listed, pushed = execute(operator, result(proposal=PROPOSAL, a=a))
    assert listed == [
        {"candidate": "aligned", "adapter": None},
        {"candidate": "fine_tuned", "adapter": TASK},
        {"candidate": "a", "adapter": a},
    ]
    assert pushed == {"pipeline_run": "run", "proposal": PROPOSAL}


def test_what_was_learned_is_handed_to_the_proposal() -> None:
    learn = LearnOperator(task_id="l", run_id="run", task_adapter=TASK, safety_adapter=TASK)
    pushed, _ = execute(learn, result(coefficients=PROPOSAL))
    assert pushed == {"run_id": "own", "coefficients": PROPOSAL}
    adapters = {"task_adapter": TASK, "safety_adapter": TASK}
    assert learn.inputs() == adapters
    operator = ProposeOperator(task_id="p", run_id="run", coefficients=pushed["coefficients"], **adapters)
    assert operator.inputs() == adapters | {"coefficients": PROPOSAL}


@pytest.mark.parametrize(
    ("tuning", "learning", "run"),
    [(True, True, ["p", "l"]), (True, False, ["p"]), (False, False, []), (None, None, ["p", "l"])],
)
def test_tasks_that_a_run_does_not_need_are_skipped_by_the_scheduler(
    tuning: bool | None, learning: bool | None, run: list[str]
) -> None:
    branch = TuneBranchOperator(task_id="b", tuning=tuning, learning=learning, propose="p", learn="l")
    assert branch.choose_branch({}) == run


def test_a_measurement_says_whose_it_is() -> None:
    operator = TuneEvaluateOperator(task_id="m", run_id="run", candidate="a", round=2, adapter=TASK)
    assert operator.inputs() == {"adapter": TASK}
    assert operator.options() == {"candidate": "a", "round": 2}
    pushed, _ = execute(operator, result(report=PROPOSAL))
    assert pushed == {"run_id": "own", "report": PROPOSAL, "candidate": "a", "round": 2}


def test_a_round_ends_with_every_report_so_far_and_names_who_goes_on() -> None:
    rounds = [
        [{"round": 0, "candidate": name, "report": {"uri": name, "digest": "0"}} for name in "ab"],
        [
            {"round": 1, "candidate": "a", "report": {"uri": "a", "digest": "1"}},
            # Left from before the run was cleared, by a mapped task that it no longer has.
            {"round": 1, "candidate": "a", "report": {"uri": "a", "digest": "old"}},
        ],
        None,  # a round that was skipped
    ]
    operator = AdvanceOperator(task_id="a", run_id="run", round=2, proposal=PROPOSAL, reports=rounds)
    assert operator.inputs() == {
        "proposal": PROPOSAL,
        "0/a": {"uri": "a", "digest": "0"},
        "0/b": {"uri": "b", "digest": "0"},
        "1/a": {"uri": "a", "digest": "1"},
    }
    assert operator.options() == {"round": 2}
    assert execute(operator, result(a=TASK))[0] == [{"candidate": "a", "adapter": TASK}]
    assert execute(operator, result({"round": 2}))[0] == []


def test_a_choice_that_chose_nobody_fails_the_task_once_it_is_on_record() -> None:
    operator = ChooseOperator(task_id="c", run_id="run", proposal=PROPOSAL, reports=[])
    done, _ = execute(operator, result({"chosen": "a", "summary": "a of 2"}, choice=PROPOSAL))
    assert done == {"run_id": "own", "choice": PROPOSAL}
    pushed = Pushed()
    operator.run_step = lambda context: result({"chosen": None, "summary": "none of 2"}, choice=PROPOSAL)
    with pytest.raises(AirflowFailException, match="none of 2"):
        operator.execute({"ti": pushed})
    assert pushed.values["choice"] == PROPOSAL
