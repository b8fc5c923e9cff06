"""Which prompts go together, and what is done where memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from safemerge.errors import EvaluationError
from safemerge.evaluation.batches import FittingBatches, by_length, check_room


def test_batches_are_fixed_by_length_and_order() -> None:
    lengths = {"a": 3, "b": 9, "c": 3, "d": 5, "e": 3}
    assert by_length(lengths, 2) == [["b", "d"], ["a", "c"], ["e"]]
    assert by_length(lengths, 9) == [["b", "d", "a", "c", "e"]]
    assert by_length({}, 4) == []


def test_prompts_without_room_are_named() -> None:
    check_room(None, {"a": 10**9}, 1)
    check_room(10, {"a": 8}, 2)
    with pytest.raises(EvaluationError, match="with 2 new tokens into 10 positions, got longer ones: a, c"):
        check_room(10, {"a": 9, "b": 8, "c": 99}, 2)


def test_a_batch_is_halved_where_memory_runs_out_and_later_ones_begin_so() -> None:
    sizes = []

    def work(ids: Sequence[str]) -> list[str]:
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("full")
        return [name.upper() for name in ids]

    fitting = FittingBatches("suite", "one answer")
    assert fitting("abcdefgh", work) == list("ABCDEFGH")
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert fitting("xyz", work) == list("XYZ")
    assert sizes[6:] == [2, 1]


def test_one_that_does_not_fit_is_named() -> None:
    def work(ids: Sequence[str]) -> list[str]:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(EvaluationError, match=r"suite, prompt 'a': expected memory for one answer, got none"):
        FittingBatches("suite", "one answer")(["a", "b"], work)
