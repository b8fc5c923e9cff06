"""Rollbacks: to whom, what they leave on record, and what they do to runs that come after."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from safemerge.errors import ConfigError, MismatchError, TrackingError
from safemerge.pipeline import rolling_back
from safemerge.pipeline.rolling_back import rollback
from safemerge.tracking import tags
from safemerge.tracking.champions import Champions
from safemerge.tracking.ledger import Ledger, PipelineRun
from tests.unit.cli.calls import invoke

NAME = "tiny-lora"


@pytest.fixture
def champions(ledger: Ledger, run: PipelineRun, tmp_path: Path) -> Champions:
    """Three champions, one after the other."""
    for digest in ("a", "b", "c"):
        release(ledger, run, tmp_path, digest)
    return ledger.champions


@pytest.fixture
def back(ledger: Ledger) -> Any:
    """A rollback on this ledger."""
    return lambda **asked: rollback(
        NAME, **({"reason": "bad", "by": "bob", "tracking_uri": ledger.tracking_uri} | asked)
    )


def release(ledger: Ledger, run: PipelineRun, folder: Path, digest: str, name: str = NAME) -> None:
    (folder / "adapter").mkdir(exist_ok=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    ledger.champions.register(
        name,
        folder / "adapter",
        adapter_digest=digest,
        pipeline_run_id=run.run_id,
        opened_at_ms=run.opened_at_ms,
        source_run_id=run.run_id,
        experiment_id=run.experiment_id,
        summary="PASS",
        card="# card",
    )


def champion(champions: Champions) -> str:
    version = champions.current(NAME)
    assert version is not None
    return str(version.version)


def test_rollbacks_go_back_step_by_step_and_are_kept_on_both_versions(
    champions: Champions, back: Any, ledger: Ledger
) -> None:
    done = back(reason="too long\nanswers")
    assert (done.from_version, done.to_version, done.from_adapter, done.to_adapter) == ("3", "2", "c", "b")
    assert champion(champions) == "2"
    left, now = (ledger.client.get_model_version(NAME, version).tags for version in "32")
    assert left[f"{tags.ROLLED_BACK}to"] == "2"
    assert now[f"{tags.RESTORED}from"] == "3"
    for kept, prefix in ((left, tags.ROLLED_BACK), (now, tags.RESTORED)):
        assert (kept[prefix + "by"], kept[prefix + "reason"]) == ("bob", "too long answers")
        assert kept[prefix + "at"] == done.at
    assert back().to_version == "1"
    with pytest.raises(MismatchError, match="expected a champion before version 1, got none"):
        back()


def test_a_release_after_a_rollback_is_followed_by_what_it_replaced(
    champions: Champions, back: Any, ledger: Ledger, run: PipelineRun, tmp_path: Path
) -> None:
    back()
    release(ledger, run, tmp_path, "d")
    assert champion(champions) == "4"
    assert back(dry_run=True).to_version == "2"


def test_a_dry_run_changes_nothing(champions: Champions, back: Any) -> None:
    before = champions.history(NAME)
    done = back(dry_run=True)
    assert (done.from_version, done.to_version, done.at) == ("3", "2", None)
    assert (champions.history(NAME), champion(champions)) == (before, "3")


def test_a_version_is_named_back_and_forth(champions: Champions, back: Any) -> None:
    back(to=1)
    assert [champions.withdrawn(NAME, digest) is not None for digest in "abc"] == [False, True, True]
    assert back(to="3").from_version == "1"
    assert champion(champions) == "3"
    assert champions.withdrawn(NAME, "c") is None


def test_a_clock_that_is_behind_puts_no_move_before_those_it_follows(
    champions: Champions, back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("safemerge.tracking.champions.time.time_ns", lambda: 0)
        back()
    assert [move.version for move in champions.history(NAME)] == ["1", "2", "3", "2"]
    assert champions.withdrawn(NAME, "c") is not None


def test_versions_that_cannot_be_gone_back_to(
    champions: Champions, back: Any, ledger: Ledger, run: PipelineRun
) -> None:
    ledger.client.create_model_version(NAME, source=f"runs:/{run.run_id}/x", run_id=run.run_id)
    for version in ("4", "9"):
        with pytest.raises(MismatchError, match=f"has been the champion, one of 1, 2; got {version}"):
            back(to=version)
    with pytest.raises(MismatchError, match="expected another version than the champion, got 3"):
        back(to=3)
    ledger.client.delete_model_version(NAME, "2")
    assert back(dry_run=True).to_version == "1"


def test_what_is_missing_is_named(back: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = "rollback of tiny-lora: expected a registered model, got none of that name"
    with pytest.raises(MismatchError, match=f"^{unknown}$"):
        back()
    ledger.client.create_registered_model("tiny-lota")
    with pytest.raises(MismatchError, match=rf"^{unknown}; did you mean tiny-lota\?$"):
        back()
    ledger.client.create_registered_model(NAME)
    with pytest.raises(MismatchError, match="rollback of tiny-lora: expected a champion, got none"):
        back()
    with pytest.raises(ConfigError, match="expected a reason, got none"):
        back(reason=" \n")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: expected the address"):
        back(tracking_uri=None)


def test_nothing_is_asked_of_a_server_that_gives_no_answer(back: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but never listens
        with pytest.raises(TrackingError, match=r"cannot be reached: .*Connection refused"):
            back(tracking_uri=f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_the_only_champion_has_no_other(ledger: Ledger, run: PipelineRun, tmp_path: Path, back: Any) -> None:
    release(ledger, run, tmp_path, "a")
    with pytest.raises(MismatchError, match="the champion, none, as there is no other; got 2"):
        back(to=2)


def test_an_alias_that_was_moved_by_hand_counts_as_the_champion(
    champions: Champions, back: Any, ledger: Ledger
) -> None:
    ledger.client.set_registered_model_alias(NAME, "champion", "2")
    assert back(dry_run=True).to_version == "1"


def test_champions_of_an_earlier_release_of_safemerge_count(
    champions: Champions, back: Any, ledger: Ledger
) -> None:
    for key in [
        key for key in ledger.client.get_registered_model(NAME).tags if key.startswith(tags.CHAMPION)
    ]:
        ledger.client.delete_registered_model_tag(NAME, key)
    for version in "123":
        ledger.client.set_model_version_tag(NAME, version, tags.OPENED, version)
    ledger.client.set_registered_model_tag(NAME, f"{tags.CHAMPION}9.x", "no record")
    assert back().to_version == "2"
    assert back().to_version == "1"


def test_a_promotion_before_the_alias_is_moved_stops_the_rollback(
    champions: Champions, back: Any, ledger: Ledger, run: PipelineRun, tmp_path: Path, monkeypatch: Any
) -> None:
    plan = rolling_back.plan_rollback

    def overtaken(*arguments: Any) -> Any:
        planned = plan(*arguments)
        release(ledger, run, tmp_path, "d")
        return planned

    monkeypatch.setattr(rolling_back, "plan_rollback", overtaken)
    with pytest.raises(
        MismatchError, match="expected version 3 to be the champion, got version 4: another has"
    ):
        back()
    assert champion(champions) == "4"


def test_a_promotion_at_the_same_moment_stands(
    champions: Champions, back: Any, ledger: Ledger, run: PipelineRun, tmp_path: Path, monkeypatch: Any
) -> None:
    appoint = Champions.appoint

    def overtaken(self: Champions, *arguments: Any, **about: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Champions, "appoint", appoint)
            release(ledger, run, tmp_path, "d")
        return appoint(self, *arguments, **about)

    with monkeypatch.context() as patch:
        patch.setattr(Champions, "appoint", overtaken)
        with pytest.raises(MismatchError, match="expected version 2 to be the champion, got version 4"):
            back()
    assert champion(champions) == "4"
    assert champions.withdrawn(NAME, "c") is None
    assert back(dry_run=True).to_version == "3"


def test_the_command_says_what_changes(champions: Champions, ledger: Ledger) -> None:
    asked = ["rollback", NAME, "--reason", "bad", "--by", "bob", "--tracking-uri", ledger.tracking_uri]
    looked = invoke(*asked, "--dry-run")
    assert looked.stdout.splitlines() == [
        "models:/tiny-lora/2 would become the champion (adapter b)",
        "instead of models:/tiny-lora/3 (adapter c), for bob: bad",
    ]
    done = json.loads(invoke(*asked, "--json").stdout)
    assert (done["from_version"], done["to_version"], done["by"]) == ("3", "2", "bob")
    assert invoke(*asked).stdout.startswith("models:/tiny-lora/1 is the champion (adapter a)\n")
    failed = invoke(*asked)
    assert (failed.exit_code, failed.stderr) == (
        4,
        "error: rollback of tiny-lora: expected a champion before version 1, got none\n",
    )
    assert invoke("rollback", NAME).exit_code == 2
    assert "Examples" in invoke("rollback", "--help").stdout
