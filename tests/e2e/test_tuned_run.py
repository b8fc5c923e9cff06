"""A DAG run that chooses its merge, with tasks mapped over candidates, under Airflow and MLflow."""

from __future__ import annotations

import pytest
import yaml

from safemerge.tracking import tags
from tests.conftest import TinyPipeline
from tests.e2e.conftest import Deployment
from tests.e2e.test_dag_run import DagRun
from tests.integration.test_pipeline_tuning import tuned_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # MLflow is started detached, as in the demo, and stopped by its process id.
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


def test_a_run_measures_candidates_round_by_round_and_merges_the_choice(
    deployment: Deployment, tiny_pipeline: TinyPipeline
) -> None:
    config = tuned_config(tiny_pipeline)
    lines = yaml.safe_load(config.read_text())
    lines["tuning"]["grid"] = {"quantiles": [0.5], "weights": [0.7]}
    lines["tuning"]["learning"] = {"harm_weights": [3], "steps": 2}
    config.write_text(yaml.safe_dump(lines))
    pipeline = TinyPipeline(config, tiny_pipeline.lines)
    with DagRun(deployment, pipeline, "dag/tuned") as dag_run:
        assert dag_run.finish() == 0, dag_run.log[-8000:]
        runs = dag_run.runs()
    chosen = runs["choose"].data
    measured = {label for label in runs if label.startswith("tune_")}
    both = ("exact_q0.5_w0.7_0.3", "learned_3")
    (best,) = {label.removeprefix("tune_2_") for label in measured if label.startswith("tune_2_")}
    assert best in both
    assert measured == {
        *("tune_0_aligned", "tune_0_fine_tuned"),
        *(f"tune_{number}_{name}" for number in (0, 1) for name in both),
        f"tune_2_{best}",
    }
    assert (chosen.metrics["prompts"], chosen.metrics["prompts_in_full"]) == (12, 16)
    # Of four rounds laid out, the config asks for three: nobody is measured in the last.
    assert f'"chosen":"{best}"' in chosen.tags[tags.RESULT].replace('": "', '":"')
    merged = runs["merge"].data.params
    if best == "learned_3":
        assert merged["method"] == "learned"
    else:
        assert merged["task_weight"] == "0.7"
    assert "lambda 3/task" in runs["learn"].data.metrics
    assert runs["pipeline"].data.tags[tags.VERDICT] == "pass"
