"""An MLflow database migrated once, a fresh copy for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from safemerge.config.pipeline import PipelineConfig
from safemerge.tracking.ledger import Ledger, PipelinePlan, PipelineRun
from tests.unit.pipelines import pipeline_config


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Ledger(f"sqlite:///{path}").client.search_experiments()
    return path


@pytest.fixture
def ledger(migrated_database: Path, tmp_path: Path) -> Ledger:
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    return Ledger(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def config() -> PipelineConfig:
    return pipeline_config()


@pytest.fixture
def run(ledger: Ledger, config: PipelineConfig) -> PipelineRun:
    return ledger.open_pipeline_run(config, plan("a" * 64), "dag/first")


def plan(digest: str) -> PipelinePlan:
    models = {"aligned_model": "1" * 64, "unaligned_model": "2" * 64}
    return PipelinePlan(
        pipeline="tiny", inputs_digest=digest, model_digests=models, task_digest="3" * 64, data_digests={}
    )
