"""Learning coefficients on a tiny model for real: what is fitted, written, applied and refused."""

from __future__ import annotations

import pytest

from safemerge import learn_coefficients
from safemerge.config.learning import LearningSettings
from safemerge.config.load import load_pipeline

pytestmark = pytest.mark.integration

QUICK = LearningSettings(
    harm_weights=(1.0, 3.0), steps=4, evaluate_every_steps=2, task_batch=2, safety_batch=3
)


def test_first(tiny_pair, tiny_adapter, tiny_pipeline, tmp_path):
    config = load_pipeline(tiny_pipeline.config)
    records = learn_coefficients(
        tiny_adapter(seed=1),
        tiny_adapter(seed=2),
        *tiny_pair,
        task_data=config.task_training.data,
        safety_data=config.safety_training.data,
        suites=config.evaluation.suites,
        learning=QUICK,
        output=tmp_path / "out",
        quantile=0.5,
        task_weight=0.6,
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "coefficients_1.json",
        "coefficients_3.json",
        "safemerge_coefficients.html",
    ]
