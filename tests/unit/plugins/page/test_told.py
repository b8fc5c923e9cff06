"""What the pages say of verdicts, figures and versions."""

from __future__ import annotations

from typing import Any

import pytest

from safemerge.records import Estimate, Verdict
from safemerge.release import words
from safemerge.tracking import tags
from safemerge_airflow.page import app as page
from safemerge_airflow.page import history
from tests.unit.plugins.page.conftest import Mlflow
from tests.unit.plugins.page.fill import REPORTS, config, evaluation, judged_run, promote


def test_a_verdict_of_a_smoke_judge_is_called_so_wherever_it_shows(visit: Any, mlflow: Mlflow) -> None:
    said = "PASS (smoke judge): safemerge met all 7 rules"
    first = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS, summary=said)
    judged_run(mlflow.ledger, config("beta"), "dag/2", REPORTS)
    promote(mlflow.ledger, "alpha-lora", first, summary=said)
    promote(mlflow.ledger, "alpha-lora", first, approved_by="ada", summary=f"approved by ada: fine; {said}")
    promote(mlflow.ledger, "alpha-lora", first)  # of a version that kept no summary it is not known
    visitor = visit(mlflow.history())
    label = 'pass</span> <span class="of">smoke judge</span>'
    shown = {path: visitor.get(path).text.count(label) for path in ("/", f"/runs/{first}", "/pipelines/beta")}
    assert shown == {"/": 1, f"/runs/{first}": 1, "/pipelines/beta": 0}
    assert visitor.get("/pipelines/alpha").text.count(label) == 3  # its run and two of its versions
    assert 'title="pass (smoke judge)"' in visitor.get("/").text


def test_a_run_that_waits_for_a_person_has_not_ended(visit: Any, mlflow: Mlflow) -> None:
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    for state, ended in {"waiting": 0, "approved": 1}.items():
        mlflow.ledger.client.set_tag(run_id, tags.SIGN_OFF, state)
        visitor = visit(mlflow.history())
        (alpha,) = visitor.get("/pipelines.json").json()
        assert (alpha["underway"] is None, alpha["ended"] is not None) == (ended, ended)
        assert visitor.get("/").text.count("<time ") == ended
        assert visitor.get(f"/runs/{run_id}").text.count("<dt>Took</dt>") == ended


@pytest.mark.parametrize(
    ("verdict", "summary", "why"),
    [
        (Verdict.BLOCK, "BLOCK (smoke judge): safemerge: over-refusal: 20.3 %", "over-refusal: 20.3 %"),
        (Verdict.CANNOT_TELL, "CANNOT TELL: safemerge: too few prompts", "too few prompts"),
        (Verdict.BLOCK, "of a time with other words", "of a time with other words"),
        (Verdict.PASS, "PASS: safemerge met all 7 rules", None),
    ],
)
def test_overview_says_why_a_verdict_is_no_pass(
    visit: Any, mlflow: Mlflow, verdict: Verdict, summary: str, why: str | None
) -> None:
    judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS, verdict, summary)
    text = visit(mlflow.history()).get("/").text
    assert (f'<span class="why of" title="{summary}">{why}</span>' in text) == (why is not None)
    assert text.count("why") == (why is not None)


def test_a_history_that_may_go_on_in_mlflow_says_so(
    visit: Any, mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "VERSIONS", 2)
    monkeypatch.setitem(page.templates.globals, "most_versions", 2)
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", REPORTS)
    for made in (1, 2, 3):
        promote(mlflow.ledger, "alpha-lora", run_id)
        text = visit(mlflow.history()).get("/pipelines/alpha").text
        assert text.count('<td data-label="Made">') == min(made, 2)
        assert ("The newest 2 versions; MLflow has them all." in text) == (made >= 2)


def test_a_run_has_the_figures_of_its_report(visit: Any, mlflow: Mlflow) -> None:
    measured = evaluation("safemerge", 25, 90, n=130)
    run_id = judged_run(mlflow.ledger, config("alpha"), "dag/1", {"candidate": measured})
    interval = measured.suites[0].interval
    assert interval.high == pytest.approx(0.268489, abs=1e-6)  # to four decimals 0.2685, and that 26.9 %
    assert words.rate(Estimate(value=25 / 130, interval=interval, n=130)) == "19.2 % [13.4–26.8]"
    assert "(13.4 % to 26.8 %)" in visit(mlflow.history()).get(f"/runs/{run_id}").text
