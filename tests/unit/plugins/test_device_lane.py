from __future__ import annotations

import pytest

from safemerge_airflow.device_lane import device_lane


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        ("LocalExecutor", {}),
        ("LocalExecutor,gpu:CeleryExecutor", {"executor": "gpu", "queue": "gpu", "pool": "gpu_pool"}),
        ("LocalExecutor, gpu:my.own.Executor", {"executor": "gpu", "queue": "gpu", "pool": "gpu_pool"}),
        ("CeleryExecutor", {}),
        ("CeleryExecutor,tpu:KubernetesExecutor", {}),
    ],
)
def test_lane_follows_the_configured_executors(
    monkeypatch: pytest.MonkeyPatch, executor: str, expected: dict[str, str]
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    assert device_lane() == expected


def test_queue_and_pool_may_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_QUEUE", "gpu")
    assert device_lane() == {"queue": "gpu", "pool": "gpu_pool"}
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_QUEUE", "a100")
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_POOL", "a100s")
    assert device_lane() == {"queue": "a100", "pool": "a100s"}


def test_pod_template_makes_a_lane_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    template = {"executor_config": {"pod_template_file": "/pods/gpu.yaml"}}
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "KubernetesExecutor")
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_POD_TEMPLATE", "/pods/gpu.yaml")
    assert device_lane() == {"queue": "gpu", "pool": "gpu_pool", **template}
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,gpu:KubernetesExecutor")
    assert device_lane() == {"executor": "gpu", "queue": "gpu", "pool": "gpu_pool", **template}
