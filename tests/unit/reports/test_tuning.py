"""What a choice came to."""

from __future__ import annotations

import pytest

from safemerge.errors import DataError
from safemerge.reports.tuning import Fate, TuneCost, TunedCandidate, TuneReport


def _report(chosen: str | None) -> TuneReport:
    candidates = (
        TunedCandidate(
            name=name,
            settings={"quantile": quantile},
            layers_merged=1,
            adapter_digest="d",
            fate=Fate.MISSED if chosen is None else Fate.KEPT_LIMITS,
            reason="",
            rounds=1,
            utility=None,
            gain_kept=None,
            harmful=None,
        )
        for name, quantile in (("a", 0.25), ("b", 0.5))
    )
    return TuneReport(
        safemerge_version="0",
        chosen=chosen,
        summary="none of 2 candidates keeps the limits",
        digests={},
        settings={},
        utility="task/metric",
        higher_is_better=True,
        worst_change=None,
        candidates=tuple(candidates),
        references={},
        cost=TuneCost(prompts=0, prompts_in_full=0, tokens=0, documents=0),
    )


def test_the_winner_is_the_candidate_of_the_chosen_name() -> None:
    assert _report("b").winner.settings == {"quantile": 0.5}


def test_there_is_no_winner_where_none_was_chosen() -> None:
    with pytest.raises(DataError, match="a candidate that was chosen, got none: none of 2"):
        _ = _report(None).winner
