"""Makes the users of workers and of Airflow's page in MLflow, where they are not there yet.

Run by the service ``mlflow-init``.
"""

import base64
import json
import os
import urllib.error
import urllib.request

USERS = {"safemerge": "MLFLOW_WORKER_PASSWORD", "page": "MLFLOW_PAGE_PASSWORD"}
"""User to the variable that holds the password."""

admin = f"{os.environ['MLFLOW_AUTH_ADMIN_USERNAME']}:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}"
authorization = f"Basic {base64.b64encode(admin.encode()).decode()}"
for name, variable in USERS.items():
    user = {"username": name, "password": os.environ[variable]}
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/create",
        json.dumps(user).encode(),
        {"Content-Type": "application/json", "Authorization": authorization},
    )
    try:
        urllib.request.urlopen(request, timeout=30)  # noqa: S310
    except urllib.error.HTTPError as error:
        if json.load(error).get("error_code") != "RESOURCE_ALREADY_EXISTS":
            raise
