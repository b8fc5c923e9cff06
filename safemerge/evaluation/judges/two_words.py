"""The probability of one word against another, as the first tokens of a guard's reply give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.errors import EvaluationError

if TYPE_CHECKING:
    from torch import Tensor


class TwoWords(NamedTuple):
    """The two words that a guard chooses between, as the tokens that they may begin with."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @property
    def wanted(self) -> tuple[int, ...]:
        """All of them: what logits are kept of."""
        return self.yes + self.no

    def step(self, tokens: Sequence[int]) -> int | None:
        """The first step at which one of the words begins; blank lines before it are passed over."""
        return next((step for step, token in enumerate(tokens) if token in self.wanted), None)

    def probability(self, logits: Tensor) -> float:
        """Probability of the first word at one step, given that it is one of the two.

        Args:
            logits: (wanted tokens), in the order of :attr:`wanted`.
        """
        weights = [math.exp(value - float(logits.max())) for value in logits.tolist()]
        return math.fsum(weights[: len(self.yes)]) / math.fsum(weights)


def two_words(tokenizer: Any, yes: Sequence[str], no: Sequence[str]) -> TwoWords:
    """Find the tokens that two words begin with, each in all its spellings.

    Raises:
        EvaluationError: the tokenizer cannot tell them apart by their first token.
    """

    def first(words: Sequence[str]) -> set[int]:
        encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
        return {tokens[0] for tokens in encoded if tokens}

    yes_tokens, no_tokens = first(yes), first(no)
    shared = yes_tokens & no_tokens
    if not yes_tokens - shared or not no_tokens - shared:
        raise EvaluationError(
            f"{tokenizer.name_or_path}: expected a tokenizer that tells {yes[0]!r} from {no[0]!r} "
            "by the first token, got one that does not"
        )
    return TwoWords(tuple(sorted(yes_tokens - shared)), tuple(sorted(no_tokens - shared)))
