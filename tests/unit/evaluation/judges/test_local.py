"""Guards that run in the process: which model is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from safemerge.errors import CheckpointError, ConfigError
from safemerge.evaluation.judges.local import identity, load_guard


def test_a_guard_on_the_hub_is_no_folder_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "gu--ard").mkdir(parents=True)
    (tmp_path / "org" / "gu--ard@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert identity("org/gu--ard@v1") == ("org/gu--ard", "v1")
    with pytest.raises(ConfigError, match="judge model org/gu--ard: expected a folder or name@revision"):
        identity("org/gu--ard")
    with pytest.raises(CheckpointError, match="the hub does not give that model"):
        load_guard("org/gu--ard")
