"""safemerge in Airflow: operators that run each pipeline step in a process of its own.

Holds no logic of a step. Imports no torch, transformers or mlflow: every task process
and every parsing of a DAG file loads this package.

Settings, all optional, in the ``[safemerge]`` section of the Airflow configuration
(or ``AIRFLOW__SAFEMERGE__<NAME>`` in the environment):

- ``python``: interpreter that runs the steps, where it is not the worker's own.
- ``mlflow_conn_id``, ``huggingface_conn_id``: connections that say where MLflow and the hub are and
  who we are there, where the workers' environment does not (``MLFLOW_TRACKING_URI``, ``HF_TOKEN``).
- ``mlflow_url``: address of the MLflow pages as a browser reaches them.
- ``gpu_queue``: the queue that device workers listen on, where no executor alias ``gpu`` says so;
  ``gpu_pod_template``: the pod template of tasks with a device, under KubernetesExecutor;
  ``gpu_pool``: their pool, where it is not ``gpu_pool``.
- ``gpu_devices``: the devices of each slot of DeviceLocalExecutor, such as ``0 1``.
"""

TAG = "safemerge"
"""A tag of every DAG of a pipeline."""
OPEN_RUN_TASK = "open_run"
"""Id of the first task of every such DAG, which opens the run's record in MLflow."""
