# Three images, chosen by --target:
#   airflow  api-server, scheduler, dag-processor, triggerer: no machine-learning library
#   worker   the same and torch, transformers, lm-eval, MLflow's client: Celery workers
#   mlflow   the tracking server
# Libraries come before our own code, so that a change of code installs none of them again.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
# User and group of the official Airflow image, which Airflow's Helm chart takes for granted.
RUN useradd --uid 50000 --gid 0 --create-home safemerge
WORKDIR /build
COPY constraints.txt ./

FROM base AS mlflow
RUN pip install -c constraints.txt "mlflow[auth]" psycopg2-binary boto3
COPY docker/mlflow-auth.ini docker/mlflow_user.py /opt/mlflow/
# A named volume takes over the owner of the folder that it is mounted on.
RUN install -d -o safemerge -g 0 -m 770 /var/lib/mlflow
WORKDIR /var/lib/mlflow
USER safemerge

FROM base AS airflow-libraries
RUN pip install -c constraints.txt "apache-airflow[celery,cncf-kubernetes,fab,postgres,standard]"
ENV AIRFLOW_HOME=/opt/airflow SAFEMERGE_HOME=/var/lib/safemerge HF_HOME=/var/lib/safemerge/huggingface
RUN install -d -o safemerge -g 0 -m 770 $AIRFLOW_HOME $AIRFLOW_HOME/logs $SAFEMERGE_HOME
COPY docker/bootstrap docker/healthcheck.py /usr/local/bin/

FROM airflow-libraries AS airflow
COPY . .
# What the DAG imports of safemerge needs none of its requirements that Airflow has not already.
RUN pip install --no-deps . && cp -r dags plugins $AIRFLOW_HOME
WORKDIR $AIRFLOW_HOME
USER safemerge

FROM airflow-libraries AS worker
# The plain wheel brings CUDA along; an index of CPU wheels saves several gigabytes.
ARG TORCH_INDEX=""
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch
# The requirements alone, by way of an empty package of our name.
COPY pyproject.toml LICENSE ./
RUN mkdir safemerge && touch README.md safemerge/__init__.py \
 && pip install -c constraints.txt ".[training,evaluation,tracking]" && pip uninstall --yes safemerge
COPY . .
RUN pip install --no-deps . && cp -r dags plugins $AIRFLOW_HOME
WORKDIR $AIRFLOW_HOME
USER safemerge
