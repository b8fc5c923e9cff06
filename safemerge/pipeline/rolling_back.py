"""Take a champion back: the alias returns to an earlier one, and both versions say who wanted it and why."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.described import Record
from safemerge.errors import AirflowApiError, ConfigError, MismatchError
from safemerge.pipeline.announcing import ChampionAsset
from safemerge.records import Printable, printable
from safemerge.tracking import history, tags
from safemerge.tracking.champions import champion_event
from safemerge.tracking.history import How, Move

if TYPE_CHECKING:
    from safemerge.tracking.champions import Champions


class Rollback(Record):
    """What a rollback changed, or would."""

    registered_model: str
    from_version: str
    from_adapter: str | None
    """sha256 of its adapter."""
    to_version: str
    to_adapter: str | None
    to_verdict: str | None
    """What the gate had said of it."""
    to_run: str | None
    """MLflow run of the pipeline that had released it."""
    by: Printable
    reason: Printable
    at: str | None
    """When the alias was moved, in ISO 8601; None for a dry run."""

    def event(self) -> dict[str, Any]:
        """What the event of the champion's asset carries: the same as of a promotion, and what was undone."""
        return champion_event(
            self.registered_model,
            self.to_version,
            adapter_digest=self.to_adapter,
            verdict=self.to_verdict,
            run_id=self.to_run,
            rollback={"from_version": self.from_version, "by": self.by, "reason": self.reason},
        )


class Plan(NamedTuple):
    """From which version to which, and all moves that this rests on."""

    left: str
    to: str
    seen: list[Move]


def rollback(
    name: str,
    *,
    reason: str,
    to: str | int | None = None,
    by: str | None = None,
    dry_run: bool = False,
    tracking_uri: str | None = None,
    airflow: str | None = None,
) -> Rollback:
    """Move the alias ``champion`` of a registered model back to an earlier champion.

    Runs do not undo it: an adapter that was taken back is not promoted again until a rollback to its version
    puts it back. A newer adapter is promoted as ever, and is compared with the champion that is there then.

    Args:
        name: the registered model.
        reason: why; kept on both versions.
        to: version to go back to; the champion before the present one where None.
        by: who wants it; the user of this process where None.
        dry_run: only say what would change.
        tracking_uri: address of MLflow; None takes ``MLFLOW_TRACKING_URI``.
        airflow: address of an Airflow whose asset of the champion gets an event, as of a promotion.

    Raises:
        ConfigError: there is no reason, or no address; or no login for Airflow.
        AirflowApiError: Airflow has no such asset, or cannot be asked, and nothing was moved; or it could not
            be told of what was.
        MismatchError: there is no such model, no champion, none before it, or the version was never one;
            or the alias was moved meanwhile.
        TrackingError: MLflow refused, or cannot be reached.
    """
    from safemerge.tracking.ledger import Ledger
    from safemerge.tracking.server import check_reachable, tracking_address, tracking_errors

    if not printable(reason):
        raise ConfigError("rollback: expected a reason, got none")
    address = tracking_address(tracking_uri)
    who = by or getpass.getuser()
    check_reachable(address)
    asset = ChampionAsset(airflow, name) if airflow else None
    with tracking_errors(address):
        champions = Ledger(address).champions
        plan = plan_rollback(champions, name, str(to) if to is not None else None)
        left, there = (champions.client.get_model_version(name, one).tags for one in (plan.left, plan.to))
        move = None
        if not dry_run:
            move = champions.take_back(name, plan.to, left=plan.left, by=who, reason=reason, seen=plan.seen)
    done = Rollback(
        registered_model=name,
        from_version=plan.left,
        from_adapter=left.get(tags.ADAPTER_DIGEST),
        to_version=plan.to,
        to_adapter=there.get(tags.ADAPTER_DIGEST),
        to_verdict=there.get(tags.VERDICT),
        to_run=there.get(tags.PIPELINE_RUN),
        by=who,
        reason=reason,
        at=_when(move) if move else None,
    )
    if asset is not None and not dry_run:
        try:
            asset.announce(done.event())
        except AirflowApiError as error:
            raise AirflowApiError(
                f"models:/{name}/{plan.to} is the champion, but Airflow was not told: {error}"
            ) from error
    return done


def plan_rollback(champions: Champions, name: str, to: str | None) -> Plan:
    """Which version becomes the champion.

    Raises:
        MismatchError: none can, or not that one.
    """
    current = champions.current(name)
    if current is None:
        raise MismatchError(f"rollback of {name}: {_why_no_champion(champions, name)}")
    left = str(current.version)
    seen = champions.history(name)
    # The alias may have been moved by hand, which leaves no trace but itself.
    line = history.line([*seen, Move(version=left, at_ms=0, how=How.REPAIR)])
    there = {str(version.version) for version in champions.client.search_model_versions(f"name = '{name}'")}
    earlier = [version for version in line[:-1] if version in there and version != left]
    if to is None:
        if not earlier:
            raise MismatchError(f"rollback of {name}: expected a champion before version {left}, got none")
        return Plan(left, earlier[-1], seen)
    if to == left:
        raise MismatchError(f"rollback of {name}: expected another version than the champion, got {to}")
    known = sorted({move.version for move in seen} & there - {left}, key=int)
    if to not in known:
        listed = f"one of {', '.join(known)}" if known else "none, as there is no other"
        raise MismatchError(
            f"rollback of {name}: expected a version that passed the gate and has been the champion, "
            f"{listed}; got {to}"
        )
    return Plan(left, to, seen)


def _why_no_champion(champions: Champions, name: str) -> str:
    names = {model.name for model in champions.client.search_registered_models(max_results=1000)}
    if name in names:
        return "expected a champion, got none"
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected a registered model, got none of that name{hint}"


def describe_rollback(name: str, move: Move) -> str:
    """What became of an adapter that was taken back, and how it is put back."""
    return (
        f"was taken back by {move.by} at {_when(move)} ({move.reason}); `safemerge rollback {name} --to "
        "VERSION` puts it back"
    )


def _when(move: Move) -> str:
    return datetime.fromtimestamp(move.at_ms / 1000, UTC).isoformat(timespec="seconds")
