"""What is kept and what is deleted on the machine that runs the steps."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from safemerge.pipeline.workspace import SECONDS_A_DAY, Workspace


def aged(folder: Path, days: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    then_s = time.time() - days * SECONDS_A_DAY
    for path in (folder / "file", folder):
        os.utime(path, (then_s, then_s))
    return folder


def test_the_same_inputs_get_the_same_scratch_folder(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first = workspace.work("train", "a" * 64)
    assert first.is_dir()
    assert workspace.work("train", "a" * 64) == first
    assert workspace.work("train", "b" * 64) != first


def test_only_what_is_older_than_the_policy_goes(tmp_path: Path) -> None:
    old, new = aged(tmp_path / "work" / "old", 4), aged(tmp_path / "work" / "new", 2)
    cached = aged(tmp_path / "cache" / "c", 4)
    other = aged(tmp_path / "kept", 400)
    assert Workspace(tmp_path).prune(checkpoints_days=3, cache_days=14) == [old]
    assert new.exists()
    assert cached.exists()
    assert other.exists()


def test_a_folder_with_one_young_file_stays(tmp_path: Path) -> None:
    folder = aged(tmp_path / "work" / "w", 10)
    (folder / "checkpoint").write_text("new")
    os.utime(folder, (0, 0))
    assert Workspace(tmp_path).prune(3, 14) == []


def test_what_others_delete_meanwhile_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (aged(tmp_path / "work" / name, 10) for name in ("a", "b"))
    (second / "of a checkpoint that is gone").symlink_to(second / "gone")
    rmtree = shutil.rmtree

    def both_delete(path: Path) -> None:
        rmtree(first)
        rmtree(path)

    with monkeypatch.context() as patch:
        patch.setattr("safemerge.pipeline.workspace.shutil.rmtree", both_delete)
        assert Workspace(tmp_path).prune(3, 14) == []
    os.utime(second, (0, 0))
    os.utime(second / "of a checkpoint that is gone", (0, 0), follow_symlinks=False)
    assert Workspace(tmp_path).prune(3, 14) == [second]


def test_home_is_read_from_the_environment_when_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEMERGE_HOME", str(tmp_path / "h"))
    assert Workspace().home == tmp_path / "h"
    monkeypatch.delenv("SAFEMERGE_HOME")
    assert Workspace().home == Path.home() / ".cache" / "safemerge"
