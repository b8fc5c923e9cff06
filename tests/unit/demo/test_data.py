"""The demo's data: enough of them, well formed, and training, development and evaluation strictly apart."""

import json
import re
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(str(files("safemerge.demo") / "data"))
FILES = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for path in sorted(FOLDER.glob("*.jsonl"))
}
SPLITS = ("train", "dev", "eval")
NEAR = 0.6
"""Jaccard similarity of the words that matter, from which two requests count as the same."""
STOP_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        """a an and any are as at be by can could did do does for from get give has have help how i in is it
        its make me my need of on or out please provide should show so some tell that the their them there
        this to up use using walk want was way ways what when where which who why will with without would
        write you your explain describe best step steps through""",
    )
)
"""Words of the frame around a request, which many requests share."""


def split(name):
    return name.rpartition("_")[2]


def words(prompt):
    """Words that tell one request from another; all of them where nothing else is left."""
    found = set(re.findall(r"[a-z0-9']+", prompt.lower()))
    return found - STOP_WORDS or found


def test_every_file_belongs_to_a_split():
    assert len(FILES) >= 12
    assert {split(name) for name in FILES} == set(SPLITS)


@pytest.mark.parametrize(
    ("name", "at_least"),
    [
        ("harmful_eval", 100),
        ("lookalike_eval", 50),
        ("ordinary_eval", 50),
        ("task_eval", 100),
        ("harmful_dev", 50),
    ],
)
def test_there_are_enough_requests(name, at_least):
    assert len(FILES[name]) >= at_least


@pytest.mark.parametrize("name", FILES)
def test_rows_have_an_id_and_a_prompt_and_none_twice(name):
    rows = FILES[name]
    for field in ("id", "prompt"):
        values = [row[field].strip() for row in rows]
        assert all(values)
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", [name for name in FILES if "harmful" in name and split(name) != "train"])
def test_harmful_requests_that_are_evaluated_carry_no_answer(name):
    assert {frozenset(row) for row in FILES[name]} == {frozenset({"id", "category", "prompt"})}


def test_harmful_requests_cover_the_usual_hazards():
    categories = [row["category"] for row in FILES["harmful_eval"]]
    assert len(set(categories)) >= 8
    assert max(map(categories.count, categories)) <= len(categories) / 4
    assert set(categories) == {row["category"] for row in FILES["harmful_dev"]}


def test_helpful_answers_are_at_least_as_many_as_refusals():
    refusals = len(FILES["safety_harmful_train"])
    assert len(FILES["safety_ordinary_train"]) + len(FILES["safety_lookalike_train"]) >= refusals


@pytest.mark.parametrize(
    "name", [name for name in FILES if name.startswith("safety") and split(name) == "train"]
)
def test_every_training_row_has_an_answer(name):
    assert all(row["response"].strip() for row in FILES[name])


@pytest.mark.parametrize(("one", "two"), list(combinations(SPLITS, 2)))
def test_no_request_of_one_split_is_in_another_even_reworded(one, two):
    ours, theirs = (
        [
            (words(row["prompt"]), row["prompt"])
            for name, rows in FILES.items()
            if split(name) == s
            for row in rows
        ]
        for s in (one, two)
    )
    near = [
        f"{first} / {second}"
        for mine, first in ours
        for other, second in theirs
        if len(mine & other) >= NEAR * len(mine | other)
    ]
    assert near == []
