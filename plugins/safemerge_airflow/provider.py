"""What Airflow lists of safemerge: its connection types and settings."""

from __future__ import annotations

from typing import Any

_OPTIONS = {
    "python": "Interpreter that runs the steps, where it is not the worker's own.",
    "mlflow_conn_id": "Connection of type mlflow, where MLFLOW_TRACKING_URI is not in the environment.",
    "huggingface_conn_id": "Connection of type huggingface, where HF_TOKEN is not in the environment.",
    "mlflow_url": "Address of the MLflow pages as a browser reaches them.",
    "gpu_queue": "Queue that device workers listen on, where no executor alias gpu says so.",
    "gpu_pod_template": "Pod template of tasks with a device, under KubernetesExecutor.",
    "gpu_pool": "Pool of tasks with a device, where it is not gpu_pool.",
    "gpu_devices": "Devices of each slot of DeviceLocalExecutor, such as 0 1.",
}


def provider_info() -> dict[str, Any]:
    """Answer of the entry point ``apache_airflow_provider``."""
    hooks = "safemerge_airflow.connections"
    options = {
        name: {"description": text, "type": "string", "version_added": None, "example": None, "default": None}
        for name, text in _OPTIONS.items()
    }
    return {
        "package-name": "safemerge",
        "name": "safemerge",
        "description": "Fine-tune, repair with SafeMERGE, evaluate, gate and release LoRA adapters.",
        "connection-types": [
            {"connection-type": "mlflow", "hook-class-name": f"{hooks}.MlflowHook", "hook-name": "MLflow"},
            {
                "connection-type": "huggingface",
                "hook-class-name": f"{hooks}.HuggingFaceHook",
                "hook-name": "Hugging Face Hub",
            },
        ],
        "extra-links": [
            "safemerge_airflow.mlflow_link.MlflowRunLink",
            "safemerge_airflow.mlflow_link.ReportLink",
        ],
        "config": {"safemerge": {"description": "The pipelines of safemerge.", "options": options}},
    }
