"""What a killed process leaves in a journal, and what the next one makes of it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from safemerge.errors import EvaluationError
from safemerge.evaluation.journal import FILE, Journal


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    values = {"a": ["☺ \ud800", "line\nbreak\u2028"], "b": [[1, 2], None], "c": {"x": 0.1}}
    journal = Journal(tmp_path / "work")
    for key, value in values.items():
        journal.put(key, value)
    again = Journal(tmp_path / "work")
    assert {key: again.get(key) for key in values} == values
    assert again.get("d") is None
    assert len((tmp_path / "work" / FILE).read_bytes().splitlines()) == 3


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_line_is_passed_over_and_the_next_begins_after_it(cut: int, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.put("first", 1)
    journal.put("torn", 2)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-cut])
    after = Journal(tmp_path)
    # All but the line break was written: the entry is whole.
    assert (after.get("first"), after.get("torn")) == (1, 2 if cut == 1 else None)
    after.put("next", 3)
    last = Journal(tmp_path)
    assert (last.get("first"), last.get("next")) == (1, 3)


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'1\n["a"]\n["a", 1, 2]\n{"a": 1, "b": 2}\n[[], 1]\n\xff\xfe\n\n["k", 7]\n')
    journal = Journal(tmp_path)
    assert [journal.get(key) for key in ("a", "b", "k")] == [None, None, 7]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: journal.put(str(n), "x" * 999), range(100)))
    assert all(Journal(tmp_path).get(str(n)) == "x" * 999 for n in range(100))


def test_without_a_folder_nothing_outlives_the_journal() -> None:
    journal = Journal()
    journal.put("a", 1)
    assert (journal.get("a"), Journal().get("a")) == (1, None)


def test_a_folder_that_another_process_has_taken_away_is_named(tmp_path: Path) -> None:
    """As the one that ends first does, where two make one output."""
    ours, theirs = Journal(tmp_path / "work"), Journal(tmp_path / "work")
    theirs.put("a", 1)
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(
        EvaluationError, match=r"work: expected the folder of unfinished work, got none: another"
    ):
        ours.put("b", 2)
