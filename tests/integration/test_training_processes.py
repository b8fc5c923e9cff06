"""Two real processes on a CPU (gloo) that train one adapter: started here, by torchrun, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from safemerge.config.training import LoraSettings, TrainingSettings
from safemerge.errors import NonFiniteError
from safemerge.reports.training import TRAINING_REPORT_FILE, TrainingReport
from safemerge.training.data import Example
from safemerge.training.sft import train_adapter
from tests.conftest import TinyPipeline

pytestmark = pytest.mark.integration

DATA = [Example(f"How do I do {i}?", f"Sure! Here is how to do {i}" + " and more" * i) for i in range(8)]
ALONE = TrainingSettings(lora=LoraSettings(r=2, alpha=4), steps=4, batch_size=4, save_every_steps=2, seed=3)
TOGETHER = ALONE.model_copy(update={"batch_size": 2, "processes": 2})


class Lines:
    """An ``on_log`` that can be pickled: a line a call with what it was told, and trouble where asked for."""

    def __init__(self, path: Path, **trouble_at: int) -> None:
        self.path = path
        self.trouble_at = trouble_at

    def __call__(self, metrics: Mapping[str, float], step: int) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            line = [os.environ["RANK"], os.environ["WORLD_SIZE"], step, metrics["loss"]]
            lines.write(json.dumps(line) + "\n")
        if step == self.trouble_at.get("stop"):
            raise NonFiniteError(f"step {step}: stopped on purpose")
        if step == self.trouble_at.get("out_of_memory") and len(self.read()) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def read(self) -> list[list[object]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def close(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    # Another order of summation only; Adam's first steps divide by it, which costs digits.
    return first.keys() == second.keys() and all(
        torch.allclose(first[name], second[name], atol=1e-4) for name in first
    )


def training_processes(of: psutil.Process) -> list[psutil.Process]:
    """Those among its children that train, beside multiprocessing's own tracker of resources."""
    return [child for child in of.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def alone(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an adapter that one process trained on batches of four."""
    root = tmp_path_factory.mktemp("alone")
    train_adapter(tiny_checkpoint, DATA, root / "adapter", root / "work", ALONE)
    return root / "adapter"


def test_two_processes_train_the_adapter_that_one_would(
    alone: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    lines = Lines(tmp_path / "lines")
    handler = signal.getsignal(signal.SIGTERM)
    report = train_adapter(
        tiny_checkpoint, DATA, tmp_path / "adapter", tmp_path / "work", TOGETHER, on_log=lines
    )
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (report.processes, report.batch_size, report.effective_batch_size) == (2, 2, 4)
    assert TrainingReport.read(tmp_path / "adapter" / TRAINING_REPORT_FILE) == report
    assert [line[:3] for line in lines.read()] == [["0", "2", step] for step in (1, 2, 3, 4)]
    assert close(weights(tmp_path / "adapter"), weights(alone))
    other = TrainingReport.read(alone / TRAINING_REPORT_FILE)
    assert report.final_loss == pytest.approx(other.final_loss, rel=1e-3)


@pytest.mark.slow
def test_what_stops_one_process_stops_both_and_the_next_call_goes_on(
    alone: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter, work = tmp_path / "adapter", tmp_path / "work"
    stopped = Lines(tmp_path / "stopped", stop=3)
    with pytest.raises(NonFiniteError, match=r"^step 3: stopped on purpose$"):
        train_adapter(tiny_checkpoint, DATA, adapter, work, TOGETHER, on_log=stopped)
    assert not adapter.exists()
    assert training_processes(psutil.Process()) == []
    checkpoint = work / "checkpoint-2"
    assert {"rng_state_0.pth", "rng_state_1.pth", "complete.json"} <= {p.name for p in checkpoint.iterdir()}
    report = train_adapter(tiny_checkpoint, DATA, adapter, work, TOGETHER)
    assert report.resumed_from_step == 2
    assert close(weights(adapter), weights(alone))


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process_shrinks_the_batch_of_both(
    alone: Path, tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(tmp_path / "lines", out_of_memory=1)
    report = train_adapter(
        tiny_checkpoint, DATA, tmp_path / "adapter", tmp_path / "work", TOGETHER, on_log=lines
    )
    assert "out of device memory at batch size 2: going on with 1" in caplog.text
    assert (report.batch_size, report.gradient_accumulation, report.effective_batch_size) == (1, 2, 4)
    assert [line[2] for line in lines.read()] == [1, 1, 2, 3, 4]
    assert close(weights(tmp_path / "adapter"), weights(alone))


# --- the commands --------------------------------------------------------------------------


def with_processes(tiny: TinyPipeline, **task_training: object) -> Path:
    """The tiny pipeline's file, its task adapter trained by two processes."""
    training = {**tiny.lines["task_training"], "processes": 2, **task_training}
    tiny.config.write_text(yaml.safe_dump({**tiny.lines, "task_training": training}), encoding="utf-8")
    return tiny.config


def command(tiny: TinyPipeline, output: Path, **task_training: object) -> list[str]:
    config = with_processes(tiny, **task_training)
    return ["safemerge", "train", "--config", str(config), "--adapter", "task", "--output", str(output)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        # On a CPU it starts one process, whatever it is asked for: that one starts the others.
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2"],
        None,
    ],
    ids=["torchrun", "accelerate", "alone"],
)
def test_the_command_trains_in_two_processes_however_it_is_started(
    launcher: list[str] | None, tiny_pipeline: TinyPipeline, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    prefix = [sys.executable, "-m", *launcher] if launcher else [sys.executable]
    ran = subprocess.run(
        [*prefix, "-m", *command(tiny_pipeline, output)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = TrainingReport.read(output / TRAINING_REPORT_FILE)
    assert (report.processes, report.effective_batch_size) == (2, 4)
    assert ran.stdout.count("4 steps on 8 examples") == 1
    assert ran.stderr.count("step 4/4") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "pipeline"]


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "main process"])
def test_killing_the_command_ends_both_processes(
    whole_group: bool, tiny_pipeline: TinyPipeline, tmp_path: Path
) -> None:
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            *command(tiny_pipeline, tmp_path / "adapter", steps=4000, save_every_steps=4000),
        ],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None
    with running.stderr:
        said = next((line for line in running.stderr if line.startswith("step ")), None)
        training = training_processes(psutil.Process(running.pid)) if said else []
        groups = {os.getpgid(process.pid) for process in training}
        if whole_group:
            os.killpg(running.pid, signal.SIGKILL)
        else:
            running.kill()
    running.wait()
    assert said is not None
    assert len(training) == 2
    assert groups == {running.pid}
    _, alive = psutil.wait_procs(training, timeout=60)
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True], ids=["alone", "torchrun"])
def test_a_pipeline_step_is_recorded_once(
    by_torchrun: bool, tiny_pipeline: TinyPipeline, tmp_path: Path
) -> None:
    from safemerge.pipeline.context import StepContext
    from safemerge.pipeline.request import StepRequest
    from safemerge.pipeline.steps import STEPS
    from safemerge.pipeline.workspace import Workspace
    from safemerge.records import StepResult
    from safemerge.tracking.ledger import Ledger

    context = StepContext(Ledger(f"sqlite:///{tmp_path / 'mlflow.db'}"), Workspace(tmp_path / "home"))
    config = str(with_processes(tiny_pipeline))
    opened = STEPS["open"](context, StepRequest(options={"config": config, "run_key": "dag/one"}))
    request = StepRequest(run_id=opened.run_id, options={"role": "task"}).model_dump_json()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if by_torchrun else []
    result = tmp_path / "result.json"
    ran = subprocess.run(
        [sys.executable, *launcher, "-m", "safemerge", "step", "train", request, "--result", str(result)],
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": context.ledger.tracking_uri,
            "SAFEMERGE_HOME": str(context.workspace.home),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    done = StepResult.read(result)
    assert done.figures["effective_batch_size"] == 4
    history = context.ledger.client.get_metric_history(done.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert len(context.ledger.client.search_runs(["1"])) == 2
    adapter = context.ledger.fetch(done.outputs["adapter"].uri, context.workspace.cache)
    assert TrainingReport.read(adapter / TRAINING_REPORT_FILE).processes == 2
