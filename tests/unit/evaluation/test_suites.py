from __future__ import annotations

import json

import pytest

from safemerge.errors import DataError
from safemerge.evaluation.suites import Prompt, Suite, load_suite
from safemerge.records import SuiteKind

GOOD = '{"id": "a", "prompt": "How?", "category": "fire"}\n\n{"id": "b", "prompt": "Why?", "note": 1}\n'


def _load(tmp_path, text, **kwargs):
    path = tmp_path / "suite.jsonl"
    path.write_text(text, encoding="utf-8")
    return load_suite("s", SuiteKind.HARMFUL, path, **kwargs)


def test_a_suite_is_read_in_order(tmp_path):
    expected = (Prompt("a", "How?", "fire"), Prompt("b", "Why?", None))
    assert _load(tmp_path, GOOD) == Suite("s", SuiteKind.HARMFUL, expected)
    assert _load(tmp_path, GOOD, limit=1).prompts == expected[:1]


def test_a_line_separator_within_a_prompt_does_not_end_the_line(tmp_path):
    row = {"id": "a", "prompt": "one\u2028two"}
    assert _load(tmp_path, json.dumps(row, ensure_ascii=False)).prompts[0].text == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one prompt, got an empty suite"),
        ("\n \n", "at least one prompt, got an empty suite"),
        ('{"id": "a", "prompt": "x"}\n{"id":', "line 2: expected a JSON object, got malformed JSON"),
        ('["a"]', "line 1: expected a JSON object, got list"),
        ('{"prompt": "x"}', "line 1: expected the key 'id', got prompt"),
        ('{"id": "a"}', "line 1: expected the key 'prompt', got id"),
        ("{}", "line 1: expected the key 'id', got no key"),
        ('{"id": 1, "prompt": "x"}', "line 1: expected 'id' to be a text that is not empty, got 1"),
        ('{"id": "a", "prompt": " "}', "line 1: expected 'prompt' to be a text that is not empty, got ' '"),
        ('{"id": "a", "prompt": "x", "category": 3}', "line 1: expected 'category' to be a text, got 3"),
        (
            '{"id": "a", "prompt": "x"}\n\n{"id": "a", "prompt": "y"}',
            r"line 3: expected ids that differ, got 'a' again \(first on line 1\)",
        ),
    ],
)
def test_bad_suites_are_refused_by_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"suite\.jsonl.*{message}"):
        _load(tmp_path, text)


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: expected a suite of prompts, got No such file"):
        load_suite("s", SuiteKind.HARMFUL, tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"x\.jsonl: expected UTF-8 text"):
        load_suite("s", SuiteKind.HARMFUL, tmp_path / "x.jsonl")


def test_the_digest_follows_the_prompts_alone(tmp_path):
    suite = _load(tmp_path, GOOD)
    assert suite._replace(name="other").digest() == suite.digest()
    assert _load(tmp_path, GOOD.replace("How", "Who")).digest() != suite.digest()
    assert _load(tmp_path, GOOD, limit=1).digest() != suite.digest()
