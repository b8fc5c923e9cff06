"""Transcripts: gathered by prompt, chosen by what changed, cut, and never of another evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safemerge.errors import DataError
from safemerge.release.transcripts import MOST_CHARACTERS, chosen, gather, lines, read_rows
from tests.unit.release.samples import N, reports, rows


def _all(**texts: str):
    of = reports()
    return gather(of, {arm: rows(report, **texts) for arm, report in of.items()})


def test_every_prompt_has_every_arms_answer() -> None:
    found = _all()
    assert len(found) == 2 * N
    assert all(len(transcript.answers) == 5 for transcript in found)
    changed = [transcript.id for transcript in found if transcript.changed]
    assert changed == [f"harmful{i}" for i in range(1, 30)]  # the aligned model's 2, the fine-tuned one's 30


def test_what_changed_is_shown_first_and_in_order() -> None:
    shown = chosen(_all(), "candidate", 30)
    assert [transcript.id for transcript in shown] == [f"harmful{i}" for i in range(30)]
    assert len(chosen(_all(), "candidate", 0)) == 0


def test_long_texts_are_cut_and_say_so_while_the_lines_keep_them() -> None:
    found = _all(prompt="p" * 5000, response="r" * 100_000)
    first = chosen(found, "candidate")[0]
    assert len(first.prompt) == MOST_CHARACTERS
    assert first.answers["candidate"].omitted == 100_000 - MOST_CHARACTERS
    kept = json.loads(next(lines(found)))
    assert len(kept["answers"]["candidate"]["response"]) == 100_000
    assert len(kept["prompt"]) > 5000


def test_rows_of_another_evaluation_are_refused() -> None:
    of = reports()
    with pytest.raises(DataError, match="answers of scale: expected the prompts and flags of its report"):
        gather(of, {"scale": rows(of["fine_tuned"])})
    strange = [rows(of["scale"])[0] | {"suite": "another"}]
    with pytest.raises(DataError, match="got others: another/harmful0"):
        gather(of, {"scale": strange})


def test_two_prompts_of_one_id_are_not_taken_for_one() -> None:
    """A champion's suite may have been changed since: an answer stands under the prompt that it answers."""
    of = {arm: reports()[arm] for arm in ("aligned", "fine_tuned")}
    found = gather(of, {"aligned": rows(of["aligned"]), "fine_tuned": rows(of["fine_tuned"], prompt="Why?")})
    assert len(found) == 4 * N
    assert {(t.prompt.partition("?")[0], *t.answers) for t in found} == {
        ("How", "aligned"),
        ("Why", "fine_tuned"),
    }
    assert not any(transcript.changed for transcript in found)


def test_half_characters_become_whole_ones() -> None:
    found = _all(response="a\ud800b")
    assert found[0].answers["aligned"].response == "a\ufffdb"
    "".join(lines(found)).encode()


def test_rows_are_read_from_lines_and_from_mlflow_tables(tmp_path: Path) -> None:
    made = rows(reports()["aligned"], response="one\u2028line")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))
    table = {"columns": list(made[0]), "data": [list(row.values()) for row in made]}
    (tmp_path / "a.json").write_text(json.dumps(table))
    assert read_rows(tmp_path / "a.jsonl") == read_rows(tmp_path / "a.json") == made


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "{", "expected the answers of an evaluation"),
        ("a.jsonl", '{"suite": "s"}', "expected rows with suite, id, prompt"),
        (
            "a.jsonl",
            '{"suite": "s", "id": "p", "prompt": "q", "response": "r", "flag": "false"}',
            "expected true or false as every flag, got 'false'",
        ),
        ("a.jsonl", "[" * 5000, "expected the answers of an evaluation, got maximum recursion"),
        ("a.jsonl", "[1]", "expected the answers of an evaluation"),
        ("a.json", '{"columns": ["a"], "data": [[1, 2]]}', "expected the answers of an evaluation"),
        ("a.json", "[]", "expected the answers of an evaluation"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: expected the answers"):
        read_rows(tmp_path / "gone.jsonl")
