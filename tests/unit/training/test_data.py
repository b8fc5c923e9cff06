"""Reading prompt and response pairs: what is read, and what each kind of bad row is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemerge.config.training import DataSource
from safemerge.errors import DataError
from safemerge.training.data import Example, data_digest, load_examples


def write(path: Path, *lines: object) -> str:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n", "utf-8")
    return str(path)


def test_sources_are_read_one_after_the_other_with_their_own_columns(tmp_path: Path):
    first = write(
        tmp_path / "a.jsonl", {"prompt": "p1", "response": "r1"}, "", {"prompt": "p2", "response": "r2"}
    )
    second = write(tmp_path / "b.jsonl", {"question": "q", "answer": "ä", "id": 3})
    sources = [DataSource(path=first), DataSource(path=second, prompt="question", response="answer")]
    assert load_examples(sources) == [Example("p1", "r1"), Example("p2", "r2"), Example("q", "ä")]


def test_limit_reads_no_further(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "response": "r"}, "not json")
    assert load_examples([DataSource(path=path, limit=1)]) == [Example("p", "r")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 1}", r"line 2: expected one JSON object, got \{'prompt': 1\}"),
        ("[" * 5000, r"line 2: expected one JSON object, got \[\[\[.* \(nested too deeply\)"),
        ("[1, 2]", r"line 2: expected a JSON object, got \[1, 2\]"),
        ({"prompt": "p", "answer": "a"}, "line 2: expected a column 'response', got 'answer', 'prompt'"),
        ({"prompt": "p", "response": 7}, "line 2: expected a text in 'response', got 7"),
        ({"prompt": " ", "response": "r"}, "line 2: expected a text in 'prompt', got ' '"),
        ({"prompt": "p", "response": None}, "line 2: expected a text in 'response', got None"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: object, message: str):
    path = write(tmp_path / "bad.jsonl", {"prompt": "p", "response": "r"}, line)
    with pytest.raises(DataError, match=f"bad.jsonl, {message}"):
        load_examples([DataSource(path=path)])


def test_an_empty_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"empty\.jsonl: expected at least one row, got an empty data set"):
        load_examples([DataSource(path=write(tmp_path / "empty.jsonl", "", ""))])


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.jsonl: expected a JSON Lines file, got no such file"):
        load_examples([DataSource(path=str(tmp_path / "absent.jsonl"))])


def test_a_file_of_another_encoding_is_refused(tmp_path: Path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "p", "response": "ä"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.jsonl: expected a readable UTF-8 file"):
        load_examples([DataSource(path=str(path))])


def test_a_data_set_that_the_hub_cannot_give_is_refused(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"nobody/nothing: expected a \.jsonl file or a hub data set, split 'test'"
    ):
        load_examples([DataSource(path="nobody/nothing", split="test")])


def test_a_folder_in_hub_layout_is_read_through_datasets(tmp_path: Path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "train.jsonl", {"prompt": "p", "response": "r"}, {"prompt": "q", "response": ""})
    assert load_examples([DataSource(path=str(folder), limit=1)]) == [Example("p", "r")]
    with pytest.raises(DataError, match=r"pairs, split train, row 2: expected a text in 'response'"):
        load_examples([DataSource(path=str(folder))])


def test_a_name_on_the_hub_is_no_file_or_folder_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "set").mkdir(parents=True)
    write(tmp_path / "org" / "file", {"prompt": "p", "response": "r"})
    monkeypatch.chdir(tmp_path)
    for name in ("org/set", "org/file"):
        with pytest.raises(
            DataError, match=rf"{name}: expected a data set of the hub, got {tmp_path}/{name} too"
        ):
            load_examples([DataSource(path=name)])
    assert load_examples([DataSource(path=str(tmp_path / "org" / "file"))]) == [Example("p", "r")]


def test_the_digest_tells_texts_order_and_boundaries_apart():
    pairs = [Example("a", "b"), Example("c", "d")]
    digests = {
        data_digest(pairs),
        data_digest(pairs[::-1]),
        data_digest(pairs[:1]),
        data_digest([Example("ab", ""), Example("c", "d")]),
    }
    assert len(digests) == 4
    assert data_digest(iter(pairs)) == data_digest(pairs)
