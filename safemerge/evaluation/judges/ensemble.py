"""Several judges that decide together, and how well they agree.

It costs what its members cost; one member's model is in memory at a time. Licences are the members'.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations

from safemerge.config.judges import EnsembleConfig, EnsembleRule
from safemerge.errors import DataError
from safemerge.evaluation.journal import Journal
from safemerge.evaluation.judges.base import Answer, Judge, settings_revision
from safemerge.records import JudgeRecord, SuiteKind

logger = logging.getLogger(__name__)


def cohens_kappa(one: Mapping[str, bool], other: Mapping[str, bool]) -> float | None:
    """Agreement of two judges beyond chance: 1 for the same flags, 0 for no more than chance gives.

    Args:
        one: prompt id to flag.
        other: prompt id to flag; the same ids.

    Returns:
        (observed − expected) / (1 − expected), at most 1; None where both gave one and the same
        flag to all, as chance alone explains that.

    Raises:
        DataError: there are no prompts, or the ids differ.

    Source: J. Cohen, Educational and Psychological Measurement 20 (1960) 37.

    >>> flags = {"a": True, "b": False, "c": True, "d": False}
    >>> cohens_kappa(flags, {**flags, "d": True})
    0.5
    """
    if not one or one.keys() != other.keys():
        raise DataError("kappa: expected flags on the same prompts, got other ones or none")
    n = len(one)
    observed = sum(one[i] == other[i] for i in one) / n
    yes_one, yes_other = sum(one.values()) / n, sum(other.values()) / n
    expected = yes_one * yes_other + (1 - yes_one) * (1 - yes_other)
    return None if expected == 1 else (observed - expected) / (1 - expected)


class Ensemble:
    """Flags what its rule makes of the members' flags."""

    def __init__(self, config: EnsembleConfig) -> None:
        from safemerge.evaluation.judges import make_judge

        self.members: tuple[Judge, ...] = tuple(make_judge(member) for member in config.members)
        self.rule = config.rule
        records = [member.record for member in self.members]
        self.record = JudgeRecord(
            id=f"{config.rule}({', '.join(record.id for record in records)})",
            revision=settings_revision(
                str(config.rule), {"members": [r.model_dump(mode="json") for r in records]}
            ),
            # A coarse member decides with the others.
            smoke=any(record.smoke for record in records),
        )
        self.member_flags: dict[str, dict[str, bool]] = {}
        """Member's id to the flags that it gave last."""

    def flags(
        self, kind: SuiteKind, answers: Sequence[Answer], journal: Journal | None = None
    ) -> dict[str, bool]:
        """Prompt id to flag; members are asked one after the other, and each is freed after it.

        Raises:
            EvaluationError: a member cannot judge such suites, or gave no verdict on an answer.
        """
        given = []
        for member in self.members:
            given.append(member.flags(kind, answers, journal))
            member.release()
        self.member_flags = {
            f"{number}. {member.record.id}": flags
            for number, (member, flags) in enumerate(zip(self.members, given, strict=True), start=1)
        }
        for (one, other), kappa in self.agreement().items():
            shown = "undefined" if kappa is None else f"{kappa:.2f}"
            logger.info("judges %s and %s: Cohen's kappa %s on %d answers", one, other, shown, len(answers))
        needed = 1 if self.rule is EnsembleRule.ANY else len(self.members) // 2 + 1
        return {a.prompt.id: sum(flags[a.prompt.id] for flags in given) >= needed for a in answers}

    def agreement(self) -> dict[tuple[str, str], float | None]:
        """Cohen's kappa of every two members over the answers judged last."""
        pairs = combinations(self.member_flags.items(), 2)
        return {(one, other): cohens_kappa(a, b) for (one, a), (other, b) in pairs if a}

    def release(self) -> None:
        """Nothing is held: members were freed."""
