"""Who was the champion when: kept as tags of the registered model, one for every move of the alias.

Each move adds a tag of its own, so that two at once lose neither. What follows from the moves is
worked out here, by functions that know nothing of MLflow.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import ValidationError

from safemerge.described import Record
from safemerge.records import Printable
from safemerge.tracking import tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

REASON_LENGTH = 1000
"""Characters kept of a reason: fewer than a tag holds, as what is escaped in JSON takes more."""


class How(StrEnum):
    """Why the alias was moved."""

    PROMOTION = "promotion"
    """A run released the version."""
    ROLLBACK = "rollback"
    """A person put an earlier champion in the place of the present one."""
    REPAIR = "repair"
    """Of two runs that released at once, the earlier gave way."""


class Move(Record):
    """One move of the alias ``champion``."""

    version: str
    """The champion from then on."""
    at_ms: int
    """Milliseconds since 1970."""
    how: How
    left: str | None = None
    """The champion until then, where it was taken back."""
    by: Printable = ""
    reason: Printable = ""
    run_id: str = ""
    """The pipeline run that released it."""
    key: str = ""
    """Name of its tag; empty where an earlier release of safemerge had moved the alias."""


def line(moves: Iterable[Move]) -> list[str]:
    """The champions that were never taken back, in their order; the last is the present one."""
    champions: list[str] = []
    for move in moves:
        champions = _after(champions, move)
    return champions


def withdrawn(moves: Iterable[Move]) -> dict[str, Move]:
    """Versions that people have taken back and not put back since, each with the rollback that did it."""
    taken_back: dict[str, Move] = {}
    champions: list[str] = []
    for move in moves:
        after = _after(champions, move)
        if move.how is How.ROLLBACK:
            # Those between the two are passed over, so they are taken back, too.
            gone = [move.left, *champions[len(after) :]]
            taken_back |= {version: move for version in gone if version}
        taken_back.pop(move.version, None)
        champions = after
    return taken_back


def _after(champions: list[str], move: Move) -> list[str]:
    """The line of champions once the alias was moved: back along it, or on to one that is not in it."""
    if move.how is not How.PROMOTION and move.version in champions:
        last = len(champions) - 1 - champions[::-1].index(move.version)
        return champions[: last + 1]
    return champions if champions[-1:] == [move.version] else [*champions, move.version]


def read(client: MlflowClient, name: str) -> list[Move]:
    """Every move of a registered model's alias, the first one first.

    Versions that an earlier release of safemerge released have no tag for that: they count as released when
    their run was opened.
    """
    moves = []
    for key, text in client.get_registered_model(name).tags.items():
        if key.startswith(tags.CHAMPION):
            try:
                moves.append(Move.model_validate_json(text).model_copy(update={"key": key}))
            except ValidationError:
                continue
    known = {move.version for move in moves if move.how is How.PROMOTION}
    for version in client.search_model_versions(f"name = '{name}'"):
        if str(version.version) not in known and tags.PIPELINE_RUN in version.tags:
            at_ms = int(version.tags.get(tags.OPENED) or version.creation_timestamp)
            moves.append(Move(version=str(version.version), at_ms=at_ms, how=How.PROMOTION))
    return sorted(moves, key=lambda move: (move.at_ms, move.key))


def write(client: MlflowClient, name: str, move: Move) -> Move:
    """Keep a move; gives it with the name of its tag."""
    kept = move.model_copy(update={"reason": move.reason[:REASON_LENGTH], "by": move.by[:REASON_LENGTH]})
    key = f"{tags.CHAMPION}{kept.at_ms:013}.{secrets.token_hex(4)}"
    client.set_registered_model_tag(name, key, kept.model_dump_json(exclude={"key"}, exclude_defaults=True))
    return kept.model_copy(update={"key": key})


def forget(client: MlflowClient, name: str, move: Move) -> None:
    """Drop a move that did not come about."""
    client.delete_registered_model_tag(name, move.key)
