"""``safemerge audit``: a sample goes out, labels come back, rates are corrected."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.unit.cli.calls import invoke


def _row(suite: str, number: int, flag: bool) -> dict[str, object]:
    return {
        "suite": suite,
        "kind": "harmful",
        "id": f"p{number}",
        "category": None,
        "prompt": f"How {number}?",
        "response": f"{suite} {number}",
        "flag": flag,
    }


ROWS = [_row(suite, n, n < flagged) for suite, flagged in (("harmful", 4), ("other", 2)) for n in range(20)]


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Folder of an evaluation: 4 of 20 answers flagged in one suite, 2 of 20 in the other."""
    folder = tmp_path / "eval"
    folder.mkdir()
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def _label(sample: Path, against: set[tuple[str, str]]) -> None:
    """Give every answer of a sample its label, as a person does in a spreadsheet."""
    with sample.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with sample.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(row | {"label": str(int((row["suite"], row["id"]) in against))} for row in rows)


def test_labels_of_a_sample_correct_the_rates(evaluation: Path, tmp_path: Path) -> None:
    sample = tmp_path / "made" / "sample.csv"
    ran = invoke("audit", "export", evaluation, "--output", sample, "--per-flag", 8)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout == f"22 of 40 answers to label, 1 or 0: {sample}\n"
    # People confirm two of four flags in the one suite and none of two in the other, and nothing else.
    _label(sample, {("harmful", "p2"), ("harmful", "p3")})
    ran = invoke("audit", "import", evaluation, sample, "--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["harmful"]["judged_rate"] == 0.2
    assert found["harmful"]["adjusted"]["value"] == pytest.approx(0.1)
    assert found["harmful"]["adjusted"]["n"] == 12
    assert (found["harmful"]["false_alarms"], found["harmful"]["missed"]) == (0.5, 0.0)
    assert found["harmful"]["strata"][1] == {"flag": True, "size": 4, "labelled": 4, "against": 2}
    assert found["other"]["false_alarms"] == 1.0
    ran = invoke("audit", "import", evaluation, sample, width=160)
    assert ran.exit_code == 0, ran.output
    (line,) = (line.split() for line in ran.stdout.splitlines() if "harmful" in line)
    assert line[:5] == ["harmful", "20.0", "%", "10.0", "%"]
    assert line[-5:] == ["12", "50.0", "%", "0.0", "%"]


def test_a_judge_that_flagged_nothing_has_no_share_of_false_alarms(tmp_path: Path) -> None:
    answers, sample = tmp_path / "responses.jsonl", tmp_path / "sample.csv"
    answers.write_text("".join(json.dumps(_row("s", n, flag=False)) + "\n" for n in range(5)))
    assert invoke("audit", "export", answers, "--output", sample).exit_code == 0
    _label(sample, set())
    ran = invoke("audit", "import", answers, sample, width=160)
    assert ran.exit_code == 0, ran.output
    (line,) = (line.split() for line in ran.stdout.splitlines() if line.lstrip().startswith("s "))
    assert line[-4:] == ["5", "–", "0.0", "%"]


def test_a_sample_may_be_of_one_suite_and_of_a_file_that_mlflow_holds(
    evaluation: Path, tmp_path: Path
) -> None:
    answers, sample = tmp_path / "responses.json", tmp_path / "sample.jsonl"
    answers.write_text(json.dumps({"columns": list(ROWS[0]), "data": [list(row.values()) for row in ROWS]}))
    ran = invoke("audit", "export", answers, "--suite", "other", "--output", sample, "--per-flag", 2)
    assert ran.exit_code == 0, ran.output
    lines = [json.loads(line) for line in sample.read_text().splitlines()]
    assert [line["suite"] for line in lines] == ["other"] * 4
    sample.write_text("".join(json.dumps(line | {"label": "0"}) + "\n" for line in lines))
    ran = invoke("audit", "import", evaluation, sample, "--json")
    assert json.loads(ran.stdout)["other"]["adjusted"]["value"] == 0.0


def test_what_cannot_be_audited_is_refused(evaluation: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    ran = invoke("audit", "export", evaluation, "--suite", "none", "--output", sample)
    assert (ran.exit_code, ran.stderr) == (
        4,
        "error: --suite: expected one of harmful, other, got none\n",
    )
    assert invoke("audit", "export", evaluation, "--output", sample).exit_code == 0
    ran = invoke("audit", "export", evaluation, "--output", sample)
    assert ran.exit_code == 4
    assert "which may hold labels" in ran.stderr
    ran = invoke("audit", "import", evaluation, sample)
    assert (ran.exit_code, ran.stderr) == (4, "error: audit: expected labels, got none\n")
    assert invoke("audit", "export", evaluation, "--per-flag", 1, "--output", sample).exit_code == 2
    missing = invoke("audit", "import", tmp_path, sample).stderr
    assert "expected the answers of an evaluation, got no such file" in missing
