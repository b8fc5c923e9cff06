from __future__ import annotations

import csv
import json
import math
import random

import pytest

from safemerge.errors import DataError
from safemerge.evaluation.audit import (
    COLUMNS,
    Stratum,
    audit,
    audit_suites,
    draw_sample,
    read_labels,
    write_sample,
)
from safemerge.stats import wilson_interval


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
    for wrong in (path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="a labelled sample with suite, id, answer and label, got"):
            read_labels(wrong, rows)


# --- the estimate --------------------------------------------------------------------


def _flags(flagged, passed):
    return {f"p{n}": n < flagged for n in range(flagged + passed)}


def _labels(flagged, *, of_flagged, of_passed):
    """Labels of the first so many of each stratum: (labelled, against)."""
    labels = {f"p{n}": n < of_flagged[1] for n in range(of_flagged[0])}
    return labels | {f"p{flagged + n}": n < of_passed[1] for n in range(of_passed[0])}


def test_the_estimate_on_a_table_worked_by_hand():
    # 20 of 100 flagged; of 10 labelled flags 8 hold, of 20 labelled passes 1 does not:
    # .2 · .8 + .8 · .05 = .2
    found = audit(_flags(20, 80), _labels(20, of_flagged=(10, 8), of_passed=(20, 1)))
    assert found.judged_rate == 0.2
    assert found.adjusted.value == pytest.approx(0.2, abs=1e-12)  # floating point alone
    assert found.adjusted.n == 30
    assert found.strata == (Stratum(False, 80, 20, 1), Stratum(True, 20, 10, 8))
    assert found.false_alarms == pytest.approx(0.2, abs=1e-12)
    assert found.missed == 0.05
    one, two = wilson_interval(8, 10), wilson_interval(1, 20)
    asked = 1.959963984540054**2 * (0.2 * 0.6**2 + 0.8 * 0.15**2) / 100
    low = 0.2 - math.sqrt((0.2 * (0.8 - one.low)) ** 2 + (0.8 * (0.05 - two.low)) ** 2 + asked)
    high = 0.2 + math.sqrt((0.2 * (one.high - 0.8)) ** 2 + (0.8 * (two.high - 0.05)) ** 2 + asked)
    assert found.adjusted.interval.low == pytest.approx(low, abs=1e-12)
    assert found.adjusted.interval.high == pytest.approx(high, abs=1e-12)


def test_everything_labelled_gives_the_peoples_own_rate():
    flags = _flags(20, 80)
    labels = _labels(20, of_flagged=(20, 15), of_passed=(80, 4))
    assert audit(flags, labels).adjusted.value == pytest.approx(0.19, abs=1e-12)


def test_one_stratum_alone_is_enough_where_the_judge_gave_one_flag():
    found = audit(_flags(0, 50), _labels(0, of_flagged=(0, 0), of_passed=(10, 0)))
    assert (found.adjusted.value, found.false_alarms, found.missed) == (0.0, None, 0.0)
    wilson = wilson_interval(0, 10)
    assert found.adjusted.interval.low == 0.0
    assert found.adjusted.interval.high == pytest.approx(wilson.high, abs=1e-12)
    assert audit(_flags(5, 0), _labels(5, of_flagged=(5, 5), of_passed=(0, 0))).missed is None


def test_an_interval_stays_within_0_and_1():
    interval = audit(_flags(1, 1), {"p0": True, "p1": False}).adjusted.interval
    assert (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("flags", "labels", "message"),
    [
        ({"a": True}, {"b": True}, "got others: b"),
        ({"a": True, "b": False}, {"a": True}, "expected labels of answers flagged False, got none of 1"),
        ({}, {}, "expected judged answers, got none"),
    ],
)
def test_labels_that_do_not_fit_are_refused(flags, labels, message):
    with pytest.raises(DataError, match=message):
        audit(flags, labels)


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


def test_the_interval_covers_the_true_rate_as_often_as_it_says():
    """Simulated: 12 % truly harmful, a judge that misses 30 % and falsely flags 8 %, 40 labels each."""
    chance = random.Random(0)  # noqa: S311
    covered = above = 0
    runs = 600
    for _ in range(runs):
        truth = {f"p{n}": chance.random() < 0.12 for n in range(400)}
        flags = {i: chance.random() < (0.7 if harm else 0.08) for i, harm in truth.items()}
        labels = {}
        for flag in (False, True):
            members = [i for i in flags if flags[i] is flag]
            labels |= {i: truth[i] for i in chance.sample(members, min(40, len(members)))}
        interval = audit(flags, labels).adjusted.interval
        covered += interval.low <= 0.12 <= interval.high
        above += interval.high < 0.12
    # 95 % aimed at; the Monte Carlo error of 600 runs is 0.9 %, and three of it are allowed.
    assert covered / runs > 0.95 - 3 * 0.009
    # The upper end is what a gate reads: it lies below the truth in 2.5 % of runs (error .65 %) at most.
    assert above / runs < 0.025 + 3 * 0.0065
