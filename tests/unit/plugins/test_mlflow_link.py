from __future__ import annotations

import pytest

from safemerge_airflow.mlflow_link import mlflow_run_url


@pytest.mark.parametrize(
    ("setting", "tracking", "expected"),
    [
        (None, None, "http://127.0.0.1:5000/#/runs/ab"),
        (None, "sqlite:///mlflow.db", "http://127.0.0.1:5000/#/runs/ab"),
        (None, "https://mlflow.example/", "https://mlflow.example/#/runs/ab"),
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
