"""What fine-tuning did and what the repair undid, in sentences."""

from __future__ import annotations

import pytest

from safemerge.errors import DataError
from safemerge.release.findings import findings, found_of
from tests.unit.release.samples import evaluation, reports


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
    with pytest.raises(DataError, match="the report of fine_tuned lacks the suite harmful"):
        list(findings(of["aligned"], of["fine_tuned"], None))
    assert found_of(of, "Ours") == ()
