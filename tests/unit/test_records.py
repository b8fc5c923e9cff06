"""Records as files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from safemerge.errors import DataError
from safemerge.records import EvaluationReport, Interval, LayerReport, MergeReport


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"arm": "\xe4"}', "Invalid JSON: invalid unicode code point"),
        ("\ufeff{}".encode("utf-16"), "Invalid JSON: expected value"),
        (b"[" * 5000, "Invalid JSON: recursion limit exceeded"),
        (b"{}", "no key arm"),
    ],
)
def test_a_file_that_holds_no_record_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"report.json: expected an evaluation report, got .*{problem}"):
        EvaluationReport.read(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    """What its figures mean may be another thing there."""
    path = tmp_path / "report.json"
    made = EvaluationReport(arm="a", adapter_digest=None, model_digest="m", utility=None, suites=())
    path.write_text(made.to_json())
    assert EvaluationReport.read(path) == made
    path.write_text(made.model_copy(update={"format_version": 2}).to_json())
    with pytest.raises(DataError, match="an evaluation report of format 1, got format 2, of a later version"):
        EvaluationReport.read(path)


def test_what_json_cannot_say_is_refused_with_its_place() -> None:
    layer = LayerReport(module="q", cosine=math.nan, merged=True, reason="")
    made = MergeReport(
        safemerge_version="0",
        method="exact",
        threshold=None,
        weights=(1, math.inf),
        digests={},
        layers=(layer,),
        options={"a": 1},
    )
    with pytest.raises(
        DataError,
        match=r"a merge report: expected finite numbers, got inf at weights\.1, nan at layers\.0\.cosine$",
    ):
        made.to_json()
    assert Interval.model_validate_json(Interval(low=0, high=1).to_json()) == Interval(low=0, high=1)
