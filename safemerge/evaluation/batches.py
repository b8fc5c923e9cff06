"""Work in batches: which prompts go together, and what is done where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from safemerge.errors import EvaluationError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def by_length(lengths: Mapping[str, int], size: int) -> list[list[str]]:
    """Batches of ids whose lengths differ least, the longest first; ids of one length keep their order.

    The longest come first as they need most memory: what runs out does so at once.

    Args:
        lengths: id to length.
        size: ids in a batch; the last may have fewer.

    >>> by_length({"a": 2, "b": 9, "c": 2}, 2)
    [['b', 'a'], ['c']]
    """
    longest_first = sorted(lengths, key=lambda name: -lengths[name])
    return [longest_first[at : at + size] for at in range(0, len(longest_first), size)]


def check_room(room: int | None, lengths: Mapping[str, int], max_new_tokens: int) -> None:
    """Check that prompts and their answers fit into a model's positions.

    Args:
        room: positions of the model; None where it states none.
        lengths: prompt id to its tokens.
        max_new_tokens: tokens of an answer.

    Raises:
        EvaluationError: some do not; all are named.
    """
    long = [name for name, length in lengths.items() if room is not None and length + max_new_tokens > room]
    if long:
        raise EvaluationError(
            f"expected prompts that fit with {max_new_tokens} new tokens into {room} positions, "
            f"got longer ones: {', '.join(long)}"
        )


class FittingBatches:
    """Does a batch's work at once, or in halves where memory runs out; later batches begin with those."""

    def __init__(self, label: str, what: str) -> None:
        """Begin without a limit.

        Args:
            label: what is being worked on, for the log.
            what: what one item needs memory for, for the error.
        """
        self._label, self._what = label, what
        self._limit: int | None = None

    def __call__(
        self, batch: Sequence[str], work: Callable[[Sequence[str]], Sequence[Result]]
    ) -> list[Result]:
        """The results of all, in order.

        Args:
            batch: ids.
            work: the results of some of them, in order.

        Raises:
            EvaluationError: memory does not suffice for one.
        """
        import torch

        results: list[Result] = []
        while len(results) < len(batch):
            part = batch[len(results) :][: self._limit]
            try:
                results += work(part)
            except torch.OutOfMemoryError as error:
                if len(part) == 1:
                    raise EvaluationError(
                        f"{self._label}, prompt {part[0]!r}: expected memory for {self._what}, "
                        f"got none ({error})"
                    ) from error
                self._limit = len(part) // 2
                logger.warning("%s: out of memory, going on with batches of %d", self._label, self._limit)
                torch.cuda.empty_cache()
        return results
