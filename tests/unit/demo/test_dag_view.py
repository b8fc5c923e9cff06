"""The terminal shows tasks, times and errors; the log keeps every line."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from safemerge.demo.dag_view import DagView

SOURCE = "[airflow.task.operators.safemerge_airflow.operators.X] loc=step_process.py:87"
UPDATED = "Task instance state updated    [airflow.api_fastapi] correlation_id=01a2"
LINES = f"""\
noise
[DAG TEST] starting task_id=open_run map_index=-1
[DAG TEST] end task task_id=open_run map_index=-1
[DAG TEST] starting task_id=train_task_adapter map_index=-1
2026-11-22T11:00Z [info     ] step 3/40  loss 1.5  ETA 0:10 {SOURCE}
already done in MLflow run abc, nothing repeated
{UPDATED} new_state=success rows_affected=1
[DAG TEST] end task task_id=train_task_adapter map_index=-1
[DAG TEST] starting task_id=evaluate.scale map_index=-1
{UPDATED} new_state=skipped rows_affected=1
[DAG TEST] end task task_id=evaluate.scale map_index=-1
[DAG TEST] starting task_id=evaluate.safemerge map_index=-1
error: tensor [bad] holds NaN
{UPDATED} new_state=failed rows_affected=1
[DAG TEST] end task task_id=evaluate.safemerge map_index=-1
[DAG TEST] starting task_id=gate map_index=-1
{UPDATED} new_state=failed rows_affected=1
[DAG TEST] end task task_id=gate map_index=-1
"""


def test_tasks_their_outcome_and_the_last_error_are_shown(tmp_path: Path) -> None:
    (tmp_path / "printer.py").write_text(f"print({LINES!r}); raise SystemExit(3)")
    console = Console(record=True, width=100, force_terminal=False)
    view = DagView(console, tmp_path / "dag.log")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert view.follow(["printer"], environment) == 3
    shown = console.export_text()
    rows = [line.split() for line in shown.splitlines() if line[:1] in "✓✗–"]
    assert [(row[0], row[1]) for row in rows] == [
        ("✓", "open_run"),
        ("✓", "train_task_adapter"),
        ("–", "evaluate.scale"),
        ("✗", "evaluate.safemerge"),
        ("✗", "gate"),
    ]
    assert rows[2][-2:] == ["(not", "needed)"]
    assert rows[3][-1] == "s"  # an error is no verdict
    assert rows[4][-1] == "(blocked)"
    assert "done before with the same inputs" in shown
    assert "    train_task_adapter  step 3/40  loss 1.5  ETA 0:10\n" in shown
    assert view.error == "error: tensor [bad] holds NaN"
    assert (tmp_path / "dag.log").read_text() == LINES + "\n"
