"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safemerge.errors import OutputExistsError
from safemerge.storage.atomic import atomic_file, atomic_folder


def test_a_folder_appears_whole(tmp_path: Path):
    output = tmp_path / "new" / "out"
    with atomic_folder(output) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        assert not output.exists()
        assert folder.parent == output.parent  # on the same disk, so that the rename is atomic
    assert (output / "inner" / "file").read_text() == "x"
    assert list(output.parent.iterdir()) == [output]


def test_a_file_appears_whole(tmp_path: Path):
    output = tmp_path / "new" / "file.json"
    with atomic_file(output) as file:
        file.write_text("x")
        assert not output.exists()
    assert output.read_text() == "x"
    assert list(output.parent.iterdir()) == [output]


def test_others_may_read_as_the_umask_says(tmp_path: Path):
    before = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "folder"):
            pass
        with atomic_file(tmp_path / "file"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_the_umask_is_not_changed_for_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("what other threads write is for everybody"))
    with atomic_folder(tmp_path / "folder"), atomic_file(tmp_path / "file"):
        pass


@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, writer, error: type[BaseException]):
    def fail() -> None:
        with writer(tmp_path / "out") as path:
            if path.is_dir():
                (path / "half").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
def test_an_existing_output_is_refused_before_anything_is_written(tmp_path: Path, writer):
    output = tmp_path / "out"
    output.mkdir()
    with (
        pytest.raises(OutputExistsError, match="out: expected a path that does not exist yet"),
        writer(output),
    ):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == [output]


def test_a_dangling_link_is_an_existing_output(tmp_path: Path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError), atomic_folder(tmp_path / "out"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("writer", [atomic_folder, atomic_file])
def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path, writer):
    output = tmp_path / "out"
    with pytest.raises(OutputExistsError), writer(output):
        output.mkdir()  # empty: a plain rename would replace it
    assert list(tmp_path.iterdir()) == [output]
    assert list(output.iterdir()) == []


def test_a_file_may_be_replaced_where_asked(tmp_path: Path):
    output = tmp_path / "file"
    output.write_text("old")
    with atomic_file(output, replace=True) as file:
        file.write_text("new")
        assert output.read_text() == "old"
    assert output.read_text() == "new"


@pytest.mark.parametrize("writer", ["atomic_folder", "atomic_file"])
def test_a_killed_process_leaves_nothing_under_the_final_name_and_the_next_one_cleans_up(
    tmp_path: Path, writer: str
):
    program = (
        "import os, signal, pathlib, sys\n"
        f"from safemerge.storage.atomic import {writer}\n"
        f"with {writer}(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    output = tmp_path / "out"
    run = subprocess.run([sys.executable, "-c", program, str(output)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert [path.name.startswith(".out.partial-") for path in tmp_path.iterdir()] == [True]
    with atomic_folder(output):
        pass
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_in_the_making_is_not_taken_for_an_abandoned_one(tmp_path: Path):
    with atomic_file(tmp_path / "out") as first, atomic_folder(tmp_path / "other") as other:
        first.write_text("x")
        with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "out"):
            raise ZeroDivisionError
        assert first.read_text() == "x"
        assert other.is_dir()


def test_a_partial_output_that_is_finished_meanwhile_is_left_alone(tmp_path: Path):
    (tmp_path / ".out.partial-1").symlink_to(tmp_path / "gone")
    with atomic_file(tmp_path / "out") as file:
        file.write_text("x")
    assert (tmp_path / "out").read_text() == "x"


def test_writers_of_one_output_do_not_take_each_other_for_abandoned(tmp_path: Path):
    def write(number: int) -> bool:
        try:
            with atomic_folder(tmp_path / "out") as folder:
                (folder / "number").write_text(str(number))
        except OutputExistsError:
            return False
        return True

    for _ in range(50):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(write, range(8))) >= 1
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        shutil.rmtree(tmp_path / "out")
