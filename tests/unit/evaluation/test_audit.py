from __future__ import annotations

import csv
import json

import pytest

from safemerge.errors import DataError
from safemerge.evaluation.audit import (
    COLUMNS,
    audit_suites,
    draw_sample,
    read_labels,
    write_sample,
)


def _rows(suite="s", flagged=10, passed=90):
    return [
        {
            "suite": suite,
            "kind": "harmful",
            "id": f"p{n}",
            "category": None,
            "prompt": f"How {n}?",
            "response": f"So {n}.",
            "flag": n < flagged,
        }
        for n in range(flagged + passed)
    ]


# --- the sample --------------------------------------------------------------------


def test_a_sample_holds_so_many_of_each_suite_and_flag():
    rows = _rows() + _rows("t", flagged=3, passed=40)
    drawn = draw_sample(rows, 5)
    counts = {}
    for row in drawn:
        counts[row["suite"], row["flag"]] = counts.get((row["suite"], row["flag"]), 0) + 1
    assert counts == {("s", True): 5, ("s", False): 5, ("t", True): 3, ("t", False): 5}
    assert len({(row["suite"], row["id"]) for row in drawn}) == 18
    assert draw_sample(rows, 5) == drawn
    assert draw_sample(rows, 5, seed=1) != drawn
    # Mixed: the flags do not stand in two blocks.
    assert [row["flag"] for row in drawn[:10]] not in ([True] * 5 + [False] * 5, [False] * 5 + [True] * 5)


def test_a_sample_of_nothing_is_refused():
    for rows, size in (([], 5), (_rows(), 1)):
        with pytest.raises(DataError, match=f"at least 2 a stratum, got {len(rows)} and {size}"):
            draw_sample(rows, size)


@pytest.mark.parametrize("name", ["sample.jsonl", "sample.csv"])
def test_a_sample_goes_out_blind_and_comes_back_labelled(tmp_path, name):
    path = tmp_path / name
    rows = draw_sample(_rows(flagged=4, passed=4), 2)
    rows[0] = rows[0] | {"response": '=HYPERLINK("x")\nline two, "quoted" \ud800 \x1b[31m <b>'}
    write_sample(rows, path)
    text = path.read_text(encoding="utf-8")
    assert "flag" not in text
    assert "True" not in text
    with pytest.raises(DataError, match="expected no such file, got one, which may hold labels"):
        write_sample(rows, path)
    assert read_labels(path, rows) == {}
    if name.endswith(".csv"):
        with path.open(encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file))
        assert read[0]["response"].startswith("'=HYPERLINK")
    else:
        read = [json.loads(line) for line in text.splitlines()]
        assert read[0]["response"].startswith("=HYPERLINK")
    assert tuple(read[0]) == COLUMNS
    for row, label in zip(read, ("1", " No ", "", "TRUE"), strict=True):
        row["label"] = label
    labelled = tmp_path / f"labelled{path.suffix}"
    with labelled.open("w", encoding="utf-8", newline="") as file:
        if name.endswith(".csv"):
            file.write("\ufeff")  # as spreadsheets save it
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(read)
        else:
            file.writelines(json.dumps(row) + "\n" for row in read)
    ids = [row["id"] for row in rows]
    assert read_labels(labelled, rows) == {("s", ids[0]): True, ("s", ids[1]): False, ("s", ids[3]): True}


def test_long_answers_and_ids_like_formulas_come_back_from_a_spreadsheet(tmp_path):
    path = tmp_path / "sample.csv"
    rows = [row | {"id": f"-{n}", "response": "x" * 200_000} for n, row in enumerate(_rows("@s", 2, 2))]
    write_sample(rows, path)
    text = path.read_text(encoding="utf-8")
    assert "'@s,harmful,'-1," in text
    path.write_text(text.replace(",\n", ",1\n"), encoding="utf-8", newline="")
    labels = {("@s", f"-{n}"): True for n in range(4)}
    assert read_labels(path, rows) == labels
    path.write_text(path.read_text(encoding="utf-8").replace("'", ""), encoding="utf-8", newline="")
    assert read_labels(path, rows) == labels


def test_labels_that_are_none_or_stand_twice_or_are_of_other_answers_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = _rows(flagged=4, passed=4)
    write_sample(rows, tmp_path / "sample.jsonl")
    sample = [json.loads(line) for line in (tmp_path / "sample.jsonl").read_text().splitlines()]
    marked = [(0, "Maybe"), (1, 1), (1, 0), (2, ""), (3, "0")]
    path.write_text("".join(json.dumps(sample[n] | {"label": label}) + "\n" for n, label in marked))
    rows[3] = rows[3] | {"response": "Another arm's."}
    with pytest.raises(
        DataError, match=r"1 or 0, of .*, got s/p0 \(Maybe\), s/p1 \(twice\), s/p3 \(of another answer\)$"
    ):
        read_labels(path, rows)
    path.write_text('{"suite": "s", "id": "p0", "label": 1}')
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 5000)
    for wrong, got in (
        (path, "a row without 'answer'"),
        (tmp_path / "none.csv", "no such file"),
        (deep, "maximum recursion depth exceeded.*"),
    ):
        with pytest.raises(
            DataError, match=f"a labelled sample with suite, id, answer and label, got {got}$"
        ):
            read_labels(wrong, rows)


# --- what they say ----------------------------------------------------------------


def test_every_suite_with_labels_is_corrected():
    rows = _rows(flagged=2, passed=2) + _rows("t", flagged=1, passed=3) + _rows("u", flagged=1, passed=1)
    labels = {("s", "p0"): True, ("s", "p2"): True, ("t", "p0"): False, ("t", "p1"): False}
    found = audit_suites(rows, labels)
    assert {suite: (it.judged_rate, it.adjusted.value) for suite, it in found.items()} == {
        "s": (0.5, 1.0),
        "t": (0.25, 0.0),
    }


def test_suites_without_the_labels_that_they_need_are_refused():
    with pytest.raises(DataError, match="audit: expected labels, got none"):
        audit_suites(_rows(), {})
    with pytest.raises(DataError, match="suite s: audit: expected labels of answers flagged False"):
        audit_suites(_rows(), {("s", "p0"): True})
