#!/usr/bin/env python3
"""Whether a component of Airflow is well: exits 0, or says what is wrong and exits 1.

``airflow jobs check`` would answer too, after some seconds of a core for every question.

Usage: ``healthcheck.py api-server | scheduler | dag-processor | triggerer | worker``
"""

import json
import os
import socket
import sys
import urllib.parse
import urllib.request

KEYS = {"api-server": "metadatabase", "dag-processor": "dag_processor"}
"""What a component is called in the api-server's answer, where it has another name there."""
TIMEOUT_S = 5


def state_of(component: str) -> str:
    """What the api-server knows of a component, by its heartbeats in the database."""
    api_server = os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"]
    url = urllib.parse.urljoin(api_server, "/api/v2/monitor/health")
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - our own server
        return json.load(answer)[KEYS.get(component, component)]["status"]


def state_of_worker() -> str:
    """Whether this machine's worker answers through the broker."""
    from celery import Celery

    broker = Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"])
    name = f"celery@{socket.gethostname()}"
    return "healthy" if broker.control.ping([name], timeout=TIMEOUT_S) else f"no answer from {name}"


component = sys.argv[1]
state = state_of_worker() if component == "worker" else state_of(component)
sys.exit(None if state == "healthy" else f"{component}: {state}")
