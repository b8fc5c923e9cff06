"""What users are told of settings and results."""

from __future__ import annotations

import pytest

from safemerge.cli.advice import error_warning, option_warnings, rank_warning, threshold_warning
from safemerge.core.options import MergeOptions
from safemerge.records import LayerReport, MergeReport


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (MergeOptions(threshold=35), ["threshold 35: cosines lie in [0, 1]: 35 merges every layer"]),
        (MergeOptions(threshold=-1), ["threshold -1: cosines lie in [0, 1]: -1 merges no layer"]),
        (MergeOptions(threshold=0), []),
        (MergeOptions(threshold=1), []),
        (MergeOptions(quantile=0.5), []),
        (
            MergeOptions(task_weight=7, safety_weight=-0.5),
            [
                "--task-weight 7 lies outside [0, 1]: it magnifies the task adapter's update in merged "
                "layers",
                "--safety-weight -0.5 lies outside [0, 1]: it reverses the safety adapter's update in merged "
                "layers",
            ],
        ),
    ],
)
def test_settings_that_hardly_can_be_meant(options: MergeOptions, said: list[str]) -> None:
    assert list(option_warnings(options)) == said


def _report(**fields) -> MergeReport:
    layers = (LayerReport(module="q", cosine=0.4, merged=True, reason=""),)
    known = {"safemerge_version": "0", "method": "exact", "threshold": 0.5, "weights": (1, 0), "digests": {}}
    return MergeReport(**(known | {"layers": layers} | fields))


@pytest.mark.parametrize("rank", [None, 16])
def test_ranks_that_servers_take_need_no_word(rank: int | None) -> None:
    assert rank_warning(_report(rank=rank)) is None


def test_a_rank_that_servers_refuse_is_worth_one() -> None:
    assert rank_warning(_report(rank=17)) == (
        "the adapter has rank 17; vLLM serves up to 16 unless its --max-lora-rank is raised. "
        "--rank 16 stores it at that rank and shows the error"
    )


def test_a_threshold_that_follows_from_a_count_tells_nothing_apart_on_purpose() -> None:
    assert threshold_warning(_report()) is not None
    assert threshold_warning(_report(options={"count": 1})) is None


def test_an_update_that_hardly_fits_its_rank_is_worth_one() -> None:
    report = _report(rank=16)
    assert error_warning(report) is None
    layers = [layer.model_copy(update={"error": 0.457}) for layer in report.layers]
    assert error_warning(report.model_copy(update={"layers": tuple(layers)})) == (
        "at rank 16 up to 46 % of a layer's update is lost: a higher --rank keeps more, and safemerge export "
        "writes a full model that keeps all of it"
    )
