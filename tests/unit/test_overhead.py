"""Where the benchmark of a DAG run's overhead says that time went."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks import BENCHMARKS, benchmarks


@pytest.fixture(scope="module")
def overhead() -> Iterator[ModuleType]:
    with benchmarks("overhead") as (overhead,):
        yield overhead


def test_the_probe_notes_what_a_process_does(overhead: ModuleType, tmp_path: Path) -> None:
    modules, notes = tmp_path / "modules", tmp_path / "notes"
    (modules / "transformers").mkdir(parents=True)
    notes.mkdir()
    (modules / "transformers" / "__init__.py").touch()
    (modules / "heavy.py").write_text("import time; time.sleep(0.2)")
    (modules / "transformers" / "trainer.py").write_text(
        "import time\nclass Trainer:\n    def train(self):\n        time.sleep(0.1); import heavy; return 7\n"
    )
    script = (
        "import os; from transformers.trainer import Trainer; assert Trainer().train() == 7\n"
        "if os.fork() == 0: import threading; Trainer().train(); os._exit(0)\n"
        "os.wait()"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (BENCHMARKS / "probe", modules))),
        "SAFEMERGE_PROBE": str(notes),
    }
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    whole, forked = sorted(map(overhead.read, notes.iterdir()), key=lambda one: one.parent != os.getpid())
    assert whole.argv[1] == forked.argv[1] == "-c"
    loads = [took for kind, _, took in whole.stretches if kind == "import"]
    (start, took), (ended, _) = (
        (at, took) for kind, at, took in whole.stretches if kind in ("training", "end")
    )
    # Sleep is never shorter than asked for; what is imported while the process trains is no training.
    assert (max(loads) >= 0.2, took >= 0.1) == (True, True)
    assert took <= ended - start - 0.2
    assert whole.stretches[0][0] == "interpreter"
    assert whole.stretches[-1][0] == "end"
    assert [kind for kind, _, _ in forked.stretches if kind != "import"] == ["training", "end"]


def test_a_task_is_split_into_imports_compute_and_rest(overhead: ModuleType) -> None:
    at = overhead.moment("2026-01-01T00:00:10+00:00")
    task = {
        "task_id": "safemerge",
        "pid": 5,
        "queued_when": "2026-01-01T00:00:08+00:00",
        "start_date": "2026-01-01T00:00:10+00:00",
        "end_date": "2026-01-01T00:00:30+00:00",
    }
    notes = {
        5: overhead.Notes(["airflow"], 1, [("import", at - 1, 0.5), ("import", at + 1, 2.0)]),
        6: overhead.Notes(
            ["python", "-m", "safemerge", "step"],
            5,
            [
                ("interpreter", at + 4, 0.25),
                ("import", at + 5, 3.0),
                ("mlflow", at + 8, 1.0),
                ("merging", at + 9, 4.0),
                ("mlflow", at + 14, 0.5),
                ("end", at + 16, 0.0),
            ],
        ),
        7: overhead.Notes(["python", "-c", "another"], 5, [("import", at + 2, 9.0)]),
    }
    row = overhead.split(task, notes)
    assert row["queued_to_running_s"] == pytest.approx(2)
    parts = ("wall_s", "imports_s", "compute_s", "rest_s")
    assert [row[part] for part in parts] == pytest.approx([20, 5, 4, 11])
    # Of the 20 s the step has 12, of which 8.75 are known; it ends 4 s before the task.
    known = {"before": 2, "after": 4, "interpreter": 0.25, "mlflow": 1.5, "other": 3.25}
    assert row["of_rest_s"] == pytest.approx(known)
    run = {"queued_at": "2026-01-01T00:00:00+00:00", "end_date": "2026-01-01T00:01:00+00:00"}
    total = overhead.summary(run, [task], [row, row])
    assert (total["run_s"], total["rest_s"], total["met"]) == pytest.approx((60, 22, True))
    overhead.show({"tasks": [row, row], **total})


def test_a_line_that_was_cut_off_is_left_out(overhead: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "5.jsonl"
    file.write_text('{"argv": ["python"], "parent": 1}\n["import", 1.0, 0.5]\n["imp')
    assert overhead.read(file) == overhead.Notes(["python"], 1, [("import", 1.0, 0.5)])
