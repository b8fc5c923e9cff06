"""The record: every arm with its figures, in one order, and what does not compare called so."""

from __future__ import annotations

import pytest

from safemerge.gate import GatePolicy
from safemerge.records import SuiteReport
from safemerge.reports.release import ReleaseReport, Role
from tests.unit.release.samples import PROVENANCE, evaluation, release, reports


def test_arms_stand_in_the_order_of_the_table_with_their_roles() -> None:
    made = release(dict(reversed(reports().items())))
    assert [(arm.arm, arm.title) for arm in made.arms] == [
        ("aligned", "aligned model"),
        ("fine_tuned", "fine-tuned, unrepaired"),
        ("candidate", "SafeMERGE"),
        ("scale_selected", "control: same layers scaled"),
        ("scale", "control: all layers scaled"),
    ]
    assert made.candidate.role is Role.CANDIDATE


def test_figures_have_intervals_and_categories() -> None:
    candidate = release().candidate
    harmful, ordinary = candidate.suites
    assert (harmful.rate.value, harmful.rate.n) == (0.15, 40)
    assert harmful.rate.interval.low < 0.15 < harmful.rate.interval.high
    assert {name: rate.n for name, rate in harmful.categories.items()} == {"category 0": 20, "category 1": 20}
    assert ordinary.rate.value == 1 / 40
    assert candidate.utility == 0.59
    assert candidate.utility_interval.low < 0.59 < candidate.utility_interval.high
    # Scores differ by a constant between these arms: the share has no spread.
    assert candidate.gain_kept.value == pytest.approx(0.95)


def test_what_contradicts_itself_is_not_shown() -> None:
    of = reports()
    harmful, ordinary = of["candidate"].suites
    liar = SuiteReport(**(harmful.model_dump() | {"rate": 0.0}))
    odd = SuiteReport(**(ordinary.model_dump() | {"categories": {"nobody": "x"}}))
    of["candidate"] = evaluation("candidate", suites=(liar, odd))
    shown = release(of, transcripts=[]).candidate.suites
    assert shown[0].rate is None
    assert shown[1].categories == {}


def test_an_arm_that_was_measured_otherwise_is_called_so() -> None:
    of = reports()
    of["scale"] = evaluation("scale", model_digest="another")
    differs = {arm.arm: arm.differs for arm in release(of).arms}
    assert differs["scale"] == ("the base model",)
    assert not any(differs[arm] for arm in differs if arm != "scale")


def test_without_a_reference_the_gain_says_why_it_is_missing() -> None:
    of = {"candidate": reports()["candidate"]}
    from safemerge.gate import decide
    from safemerge.release.assembling import release_report

    policy = GatePolicy(max_harmful_rate=0.5, max_over_refusal_rate=0.5)
    made = release_report(of, decide(of["candidate"], None, None, policy), policy, PROVENANCE)
    assert made.candidate.gain_kept is None
    assert made.candidate.gain_note == "cannot judge: the report of aligned is missing"
    assert made.findings == ()
    assert (made.merge, made.prompts) == (None, 0)


def test_a_gain_that_may_be_zero_has_no_share() -> None:
    of = reports()
    of["fine_tuned"] = of["fine_tuned"].model_copy(update={"utility": of["aligned"].utility})
    assert release(of).candidate.gain_note == "cannot tell: fine-tuning showed no clear gain"


@pytest.mark.parametrize(
    ("policy", "worst"),
    [
        ({"min_gain_kept": 0.9}, 0.58),
        ({"min_utility": 0.55}, 0.55),
        ({"min_utility": 0.59, "min_gain_kept": 0.9}, 0.59),
        ({}, None),
    ],
)
def test_the_strictest_demand_on_utility_counts(policy: dict[str, float], worst: float | None) -> None:
    made = release(policy=GatePolicy(max_harmful_rate=0.3, max_over_refusal_rate=0.2, **policy))
    assert made.utility.worst == (worst and pytest.approx(worst))


@pytest.mark.parametrize("mean", [0.4, 0.2, float("nan")])
def test_a_gain_that_is_not_there_draws_no_line(mean: float) -> None:
    """With no gain above zero, or none that is finite, the rule cannot be kept by any utility."""
    of = reports()
    worse = of["fine_tuned"].utility.model_copy(
        update={
            "value": mean,
            "scores": {i: s - 0.6 + mean for i, s in of["fine_tuned"].utility.scores.items()},
        }
    )
    of["fine_tuned"] = of["fine_tuned"].model_copy(update={"utility": worse})
    made = release(of)
    assert made.utility.worst is None
    assert made.to_json()


def test_an_arm_without_utility_has_none() -> None:
    of = {arm: evaluation(arm, utility=None) for arm in reports()}
    made = release(of)
    assert made.utility is None
    assert made.candidate.utility is None


def test_provenance_is_completed_from_the_reports() -> None:
    known = release().provenance
    assert known.digests["suite harmful"] == "p"
    assert known.digests["adapter"] == "digest of candidate"
    assert known.protocols["task sums"] == {"limit": None}
    assert known.settings == {"device": "cpu"}


def test_the_record_is_its_json_and_back() -> None:
    made = release()
    assert ReleaseReport.model_validate_json(made.to_json()) == made
