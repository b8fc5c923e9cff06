"""A full disk is told from other errors, whichever library met it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from safemerge.errors import DiskFullError, TrackingError
from safemerge.storage.disk import check_disk_room, full_disk_errors

FULL = Path("/dev/full")
"""Linux's device that has no room."""


def test_disk_is_named(tmp_path: Path) -> None:
    home = tmp_path / "not" / "made"
    message = r"^/\S+: expected room to write, got a full disk \(\d+ MB free\)$"
    with pytest.raises(DiskFullError, match=message), full_disk_errors(home):
        FULL.write_bytes(b"x")


def test_full_disk_is_found_below_another_error(tmp_path: Path) -> None:
    def fetch() -> None:
        try:
            FULL.write_bytes(b"x")
        except OSError as error:
            raise TrackingError("could not be fetched") from error

    with pytest.raises(DiskFullError), full_disk_errors(tmp_path):
        fetch()


def test_error_of_safetensors_counts(tmp_path: Path) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(DiskFullError), full_disk_errors(tmp_path):
        raise SafetensorError(said)


def test_any_error_counts_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if path == tmp_path else 1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(DiskFullError, match=f"^{tmp_path}: "), full_disk_errors(tmp_path):
        raise RuntimeError("basic_ios::clear: iostream error")  # so torch's writer of files


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file"), RuntimeError("the server says: No space left on device")],
    ids=["another number", "another disk"],
)
def test_other_errors_stay_themselves(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, full_disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_room_is_looked_for_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    check_disk_room(tmp_path / "not" / "made", 3_000_000)
    with pytest.raises(DiskFullError, match=r"made: expected 4 MB of room, got 3 MB free"):
        check_disk_room(tmp_path / "not" / "made", 3_000_001)
