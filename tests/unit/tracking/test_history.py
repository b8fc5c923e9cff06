"""Who was the champion when: what follows from the moves of the alias."""

from __future__ import annotations

import pytest

from safemerge.tracking.history import How, Move, line, withdrawn


def moves(*told: str) -> list[Move]:
    """``+3``: version 3 was promoted; ``3>2``: a person went from 3 back to 2; ``=2``: 2 was put right."""
    found = []
    for at_ms, text in enumerate(told):
        left, back, version = text.partition(">")
        if back:
            found.append(Move(version=version, at_ms=at_ms, how=How.ROLLBACK, left=left))
        else:
            how = How.PROMOTION if text[0] == "+" else How.REPAIR
            found.append(Move(version=text[1:], at_ms=at_ms, how=how))
    return found


@pytest.mark.parametrize(
    ("told", "champions", "taken_back"),
    [
        ((), [], []),
        (("+1", "+2", "+3"), ["1", "2", "3"], []),
        (("+1", "+1"), ["1"], []),
        (("+1", "+2", "+1"), ["1", "2", "1"], []),
        (("+1", "+2", "+3", "3>2"), ["1", "2"], ["3"]),
        (("+1", "+2", "+3", "3>2", "2>1"), ["1"], ["2", "3"]),
        (("+1", "+2", "+3", "3>1"), ["1"], ["2", "3"]),
        (("+1", "+2", "+3", "3>2", "+4"), ["1", "2", "4"], ["3"]),
        (("+1", "+2", "2>1", "1>2"), ["1", "2"], ["1"]),
        (("+1", "+2", "+1", "1>2"), ["1", "2"], ["1"]),
        # The earlier of two runs gave way: nobody took its adapter back.
        (("+2", "+1", "=2"), ["2"], []),
    ],
)
def test_what_follows_from_the_moves(
    told: tuple[str, ...], champions: list[str], taken_back: list[str]
) -> None:
    assert line(moves(*told)) == champions
    assert sorted(withdrawn(moves(*told))) == taken_back
