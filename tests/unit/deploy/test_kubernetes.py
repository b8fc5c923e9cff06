"""The files for Kubernetes against its schemas, Airflow's provider and the chart's documented keys."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "values.yaml").read_text(encoding="utf-8"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PODS = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (FOLDER / "pods").iterdir()}
DEVICE = "device-task.yaml"
VERSIONS = ("1.30", kubernetes_validate.latest_version())

CHART_KEYS = {
    "airflowVersion",
    "apiSecretKeySecretName",
    "config",
    "data.metadataSecretName",
    "defaultAirflowRepository",
    "defaultAirflowTag",
    "env",
    "executor",
    "fernetKeySecretName",
    "jwtSecretName",
    "postgresql.enabled",
    "scheduler.extraVolumeMounts",
    "scheduler.extraVolumes",
    "securityContexts.containers",
    "securityContexts.pod",
    "statsd.enabled",
}
"""Keys of the chart's values.yaml, read there (chart 1.19): its schema is on no package index."""
CHART_SECRETS = {
    "data.metadataSecretName": "connection",
    "fernetKeySecretName": "fernet-key",
    "apiSecretKeySecretName": "api-secret-key",
    "jwtSecretName": "jwt-secret",
}
"""Key of the values to the key that the chart reads in the secret named there."""


def check(pod: Mapping[str, Any], version: str = VERSIONS[-1]) -> None:
    kubernetes_validate.validate(dict(pod), version, strict=True)


def keys(node: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key below a node of YAML."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        if isinstance(node, dict):
            yield (*at, key)
        yield from keys(child, (*at, key))


def value(dotted: str) -> Any:
    found = VALUES
    for key in dotted.split("."):
        found = found[key]
    return found


# --- pod templates -------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_template_fits_the_schema(name: str, version: str) -> None:
    check(PODS[name], version)


NAMED_FREELY = {"labels", "nodeSelector", "requests", "limits"}


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_misspelt_key_does_not_fit(name: str) -> None:
    checked = 0
    for path in keys(PODS[name]):
        if len(path) > 1 and path[-2] in NAMED_FREELY:
            continue
        broken = copy.deepcopy(PODS[name])
        parent = broken
        for key in path[:-1]:
            parent = parent[key]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        with pytest.raises((kubernetes_validate.ValidationError, KeyError)):  # KeyError: kind, apiVersion
            check(broken)
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_task_has_no_more_rights_than_it_needs(name: str) -> None:
    spec = PODS[name]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "base"  # the one that Airflow completes
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert "memory" in container["resources"]["limits"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts[environment["SAFEMERGE_HOME"]] == "cache"
    (cache,) = (volume for volume in spec["volumes"] if volume["name"] == "cache")
    assert cache.keys() & {"emptyDir", "ephemeral"}
    assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}


def test_only_tasks_on_a_device_take_one() -> None:
    plain, device = (PODS[name]["spec"] for name in ("task.yaml", DEVICE))
    assert device["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert device["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert device["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert not [path for path in keys(plain) if "nvidia.com/gpu" in path]
    assert plain["containers"][0]["image"] == device["containers"][0]["image"]


def test_airflow_completes_the_template_that_the_dag_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.cncf.kubernetes.executors.kubernetes_executor_utils import (
        get_base_pod_from_template,
    )
    from airflow.providers.cncf.kubernetes.kube_config import KubeConfig
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    from kubernetes.client import ApiClient

    from safemerge_airflow.device_lane import device_lane

    for name, setting in VALUES["config"]["kubernetes_executor"].items():
        monkeypatch.setenv(f"AIRFLOW__KUBERNETES_EXECUTOR__{name.upper()}", setting)
    template = VALUES["config"]["safemerge"]["gpu_pod_template"].replace("/etc/safemerge", str(FOLDER))
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", VALUES["executor"])
    monkeypatch.setenv("AIRFLOW__SAFEMERGE__GPU_POD_TEMPLATE", template)
    config = KubeConfig()
    pod = PodGenerator.construct_pod(
        dag_id="safemerge_pipeline",
        task_id="train_task_adapter",
        pod_id="safemerge-pipeline-train-task-adapter-abc",
        try_number=1,
        kube_image=config.kube_image,
        date=None,
        args=["python", "-m", "airflow.sdk.execution_time.execute_workload"],
        pod_override_object=None,
        base_worker_pod=get_base_pod_from_template(
            device_lane()["executor_config"]["pod_template_file"], config
        ),
        namespace="safemerge",
        scheduler_job_id="1",
        run_id="manual__1",
    )
    made = ApiClient().sanitize_for_serialization(pod)
    check(made)
    (container,) = made["spec"]["containers"]
    assert container["args"][0] == "python"
    template_container = PODS[DEVICE]["spec"]["containers"][0]
    assert container["image"] == template_container["image"]
    assert container["resources"] == template_container["resources"]
    assert made["spec"]["tolerations"] == PODS[DEVICE]["spec"]["tolerations"]


# --- values of the chart ---------------------------------------------------------------------


def test_values_have_only_keys_that_the_chart_documents() -> None:
    paths = {".".join(map(str, path)) for path in keys(VALUES)}
    used = {path for path in paths if not any(other.startswith(f"{path}.") for other in CHART_KEYS)} - {
        path for path in paths if any(path.startswith(f"{key}.") for key in CHART_KEYS)
    }
    assert used == CHART_KEYS


def test_config_has_only_options_that_exist() -> None:
    from airflow.configuration import conf

    import safemerge_airflow

    for section, options in VALUES["config"].items():
        for option in options:
            if section == "safemerge":
                assert f"``{option}``" in str(safemerge_airflow.__doc__)
            else:
                known = conf.configuration_description[section]["options"]
                assert option in known, f"{section}.{option}"


def test_what_the_values_hand_to_kubernetes_fits_its_schema() -> None:
    scheduler, context = VALUES["scheduler"], VALUES["securityContexts"]
    container = {"name": "c", "image": "i", "env": VALUES["env"], "securityContext": context["containers"]}
    check(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {
                "containers": [container | {"volumeMounts": scheduler["extraVolumeMounts"]}],
                "volumes": scheduler["extraVolumes"],
                "securityContext": context["pod"],
            },
        }
    )
    assert context["pod"] == PODS["task.yaml"]["spec"]["securityContext"]


def test_the_scheduler_finds_the_pod_templates_where_the_config_says() -> None:
    (mount,) = VALUES["scheduler"]["extraVolumeMounts"]
    (volume,) = VALUES["scheduler"]["extraVolumes"]
    assert mount["name"] == volume["name"]
    config = VALUES["config"]
    named = [config["kubernetes_executor"]["pod_template_file"], config["safemerge"]["gpu_pod_template"]]
    assert named == [f"{mount['mountPath']}/{name}" for name in ("task.yaml", DEVICE)]
    assert set(PODS) == {"task.yaml", DEVICE}
    config_map = volume["configMap"]["name"]
    assert f"kubectl create configmap {config_map} --from-file deploy/kubernetes/pods" in README


def test_the_readme_makes_every_secret_that_is_used() -> None:
    made = dict(re.findall(r"kubectl create secret generic (\S+) --from-literal ([\w-]+)=", README))
    expected = {value(dotted): key for dotted, key in CHART_SECRETS.items()}
    for pod in PODS.values():
        for source in pod["spec"]["containers"][0]["envFrom"]:
            expected[source["secretRef"]["name"]] = "MLFLOW_TRACKING_USERNAME"
    assert made == expected


def test_names_begin_with_the_releases() -> None:
    release = re.search(r"helm upgrade --install (\S+) ", README)
    assert release
    assert {pod["metadata"]["labels"]["release"] for pod in PODS.values()} == {release[1]}
    assert VALUES["config"]["core"]["execution_api_server_url"].startswith(f"http://{release[1]}-api-server:")
    for pod in PODS.values():
        spec = pod["spec"]
        assert spec["serviceAccountName"] == f"{release[1]}-worker"
        assert {"name": "config", "configMap": {"name": f"{release[1]}-config"}} in spec["volumes"]
