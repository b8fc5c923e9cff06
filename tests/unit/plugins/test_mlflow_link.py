from __future__ import annotations

from types import SimpleNamespace

import pytest

from safemerge_airflow.mlflow_link import ReportLink, mlflow_run_url


@pytest.mark.parametrize(
    ("setting", "tracking", "expected"),
    [
        (None, None, "http://127.0.0.1:5000/#/runs/ab"),
        (None, "sqlite:///mlflow.db", "http://127.0.0.1:5000/#/runs/ab"),
        (None, "https://mlflow.example/", "https://mlflow.example/#/runs/ab"),
        (None, "https://me:secret@mlflow.example/", "https://mlflow.example/#/runs/ab"),
        ("https://public.example", "http://mlflow:5000", "https://public.example/#/runs/ab"),
    ],
)
def test_link_leads_where_a_browser_can_go(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, tracking: str | None, expected: str
) -> None:
    for name, value in {"AIRFLOW__SAFEMERGE__MLFLOW_URL": setting, "MLFLOW_TRACKING_URI": tracking}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert mlflow_run_url("ab") == expected


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, "/plugin/safemerge/safemerge/runs/ab"),
        ("https://tools.example/airflow/", "/airflow/plugin/safemerge/safemerge/runs/ab"),
    ],
)
def test_report_is_shown_in_airflows_frame(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, expected: str
) -> None:
    if base_url is not None:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    else:
        monkeypatch.delenv("AIRFLOW__API__BASE_URL", raising=False)
    assert ReportLink().get_link(SimpleNamespace(run_id="ab"), ti_key=None) == expected
    assert ReportLink().get_link(SimpleNamespace(run_id=None), ti_key=None) == ""
