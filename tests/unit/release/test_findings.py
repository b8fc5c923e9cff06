"""What fine-tuning did and what the repair undid, in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.errors import DataError
from safemerge.records import JudgeRecord, Stopped
from safemerge.release.findings import findings, found_of
from tests.unit.release.samples import N, evaluation, reports


def test_drift_repair_and_control_are_told_in_paired_figures() -> None:
    of = reports()
    told = list(findings(of["aligned"], of["fine_tuned"], of["candidate"], of["scale_selected"], name="Ours"))
    assert [sentence.partition(" by ")[0] for sentence in told] == [
        "Fine-tuning moved the harmful rate on harmful",
        "Ours moved it",
        told[2].partition(" by ")[0],
        "Against the same layers merely scaled, the safety adapter changed it",
    ]
    assert "by +70.0 [" in told[0]
    assert told[2].startswith("It won back 86 % [")
    assert told[3].startswith(
        "Against the same layers merely scaled, the safety adapter changed it by +2.5 ["
    )


def test_a_rise_that_may_be_zero_is_not_won_back() -> None:
    aligned = evaluation("aligned")
    told = list(findings(aligned, evaluation("scale"), evaluation("candidate")))
    assert (
        told[2] == "The prompts cannot tell whether it won back any of that: fine-tuning's rise may be zero."
    )


def test_without_the_two_ends_there_is_nothing_to_tell() -> None:
    assert list(findings(None, evaluation("fine_tuned"), None)) == []
    assert len(list(findings(evaluation("aligned"), evaluation("fine_tuned"), None))) == 1


def test_arms_on_other_prompts_tell_nothing() -> None:
    of = reports() | {"fine_tuned": evaluation("fine_tuned", suites=())}
    with pytest.raises(DataError, match=r"cannot be compared: they differ in suite harmful \(one lacks it\)"):
        list(findings(of["aligned"], of["fine_tuned"], None))
    assert found_of(of, "Ours") == ()


STOPPED = Stopped(planned=N, error=0.0, seed=0)


@pytest.mark.parametrize(
    ("arm", "changed", "problem"),
    [
        ("fine_tuned", {"prompts_digest": "another"}, r"differ in suite harmful \(prompts\)"),
        ("fine_tuned", {"judge": JudgeRecord(id="b", revision="1", smoke=False)}, r"suite harmful \(judge\)"),
        ("candidate", {"protocol": {"decoding": "sampled"}}, r"suite harmful \(generation: decoding\)"),
        ("candidate", {"rate": 0.0}, "suite harmful of safemerge: expected all flags and a rate that agrees"),
        ("scale_selected", {"stopped": STOPPED}, "suite harmful of scale_selected: expected all flags"),
    ],
)
def test_arms_that_were_not_measured_alike_or_not_to_the_end_tell_nothing(
    arm: str, changed: dict[str, Any], problem: str
) -> None:
    of = reports()
    harmful, ordinary = of[arm].suites
    of[arm] = of[arm].model_copy(update={"suites": (harmful.model_copy(update=changed), ordinary)})
    with pytest.raises(DataError, match=problem):
        list(findings(of["aligned"], of["fine_tuned"], of["candidate"], of["scale_selected"]))
    assert found_of(of, "Ours") == ()


def test_another_base_model_or_an_adapter_in_the_models_place_tells_nothing() -> None:
    of = reports()
    other = of["fine_tuned"].model_copy(update={"model_digest": "another"})
    with pytest.raises(
        DataError, match="fine_tuned and aligned cannot be compared: they differ in the base model"
    ):
        list(findings(of["aligned"], other, None))
    with pytest.raises(
        DataError, match="the report of aligned is of the adapter digest of sc, not of the model"
    ):
        list(findings(of["scale"], of["fine_tuned"], None))
