"""Notes where each Python process spends its time; Python loads a module of this name by itself.

Active where ``SAFEMERGE_PROBE`` names a folder. There every process writes a file ``<process id>.jsonl``:
first what it is, then one line for each stretch of its main thread, ``[kind, start, seconds]``: when it
began, in seconds since 1970, and how long it took without the stretches of other kinds inside it. Kinds are
``interpreter`` (the start of Python), ``import``, those of ``WATCHED``, and ``end``, just before Python ends.
"""

from __future__ import annotations

import _frozen_importlib
import atexit
import functools
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

WATCHED: dict[str, dict[str, str]] = {
    "transformers.trainer": {"Trainer.train": "training"},
    "safemerge.evaluation.decoding": {"decode": "generation"},
    "lm_eval.models.huggingface": {"HFLM.loglikelihood": "scoring", "HFLM.generate_until": "generation"},
    "safemerge.evaluation.harm": {"judge_suite": "judging"},
    "safemerge.engine.merging": {"merge_arms": "merging"},
    "safemerge.plots.merge": {"layer_plot_html": "plots"},
    "safemerge.storage.digests": {"file_digest": "digests", "tensor_digest": "digests"},
    "safemerge.storage.checkpoints": {"Checkpoint.files_digest": "digests"},
    "safemerge.storage.adapters": {"adapter_digest": "digests"},
    "safemerge.evaluation.engines": {"load": "loading"},
    "safemerge.training.sft": {"_load_model": "loading", "_build_trainer": "preparing"},
    "safemerge.evaluation.utility": dict.fromkeys(("_manager", "_load", "_task_digest"), "tasks"),
    "mlflow.tracking.client": {"MlflowClient.*": "mlflow"},
    "mlflow.artifacts": {"download_artifacts": "mlflow"},
}
"""Module to function to the kind of its time; ``*`` is every public method."""


class Clock:
    """The stretches that the main thread is in, and the file of those that ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        """Start a file of its own, as the child after a fork does."""
        self._thread = threading.get_ident()
        self._open: list[list[Any]] = []
        self._file = (self._folder / f"{os.getpid()}.jsonl").open("a", buffering=1, encoding="utf-8")
        self.write({"pid": os.getpid(), "parent": os.getppid(), "argv": sys.orig_argv, "at": time.time()})

    def write(self, line: object) -> None:
        """One line of the file."""
        self._file.write(json.dumps(line) + "\n")

    def enter(self, kind: str) -> bool:
        """A stretch begins; False where it is part of one of its kind, or of another thread's."""
        if threading.get_ident() != self._thread or (self._open and self._open[-1][0] == kind):
            return False
        self._open.append([kind, time.time(), 0.0])
        return True

    def leave(self) -> None:
        """It ends."""
        kind, start, inner = self._open.pop()
        took = time.time() - start
        if self._open:
            self._open[-1][2] += took
        if took - inner > 1e-4:
            self.write([kind, start, took - inner])

    def timed(self, function: Any, kind: str) -> Any:
        """The function, its calls noted."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.enter(kind):
                return function(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return call


def watch_imports(clock: Clock) -> None:
    """Note the loading of modules, and wrap functions of those that are watched."""
    load = _frozen_importlib._find_and_load  # type: ignore[attr-defined]

    def noted(name: str, import_: Any) -> Any:
        is_outermost = clock.enter("import")
        try:
            module = load(name, import_)
        finally:
            if is_outermost:
                clock.leave()
        for path, kind in WATCHED.pop(name, {}).items():
            wrap(clock, module, path, kind)
        return module

    _frozen_importlib._find_and_load = noted  # type: ignore[attr-defined]


def wrap(clock: Clock, module: Any, path: str, kind: str) -> None:
    """Put the noted function where the function was."""
    *classes, name = path.split(".")
    place = getattr(module, classes[0]) if classes else module
    names = [n for n, f in vars(place).items() if callable(f) and n[0] != "_"] if name == "*" else [name]
    for one in names:
        setattr(place, one, clock.timed(getattr(place, one), kind))


def note_end(clock: Clock) -> None:
    """Note when the process ends, by itself or at once."""
    leave = os._exit

    def noted(code: int) -> None:
        clock.write(["end", time.time(), 0.0])
        leave(code)

    atexit.register(lambda: clock.write(["end", time.time(), 0.0]))
    os._exit = noted  # type: ignore[assignment]


def started_s() -> float:
    """When this process began, in seconds since 1970, to a hundredth."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


if "SAFEMERGE_PROBE" in os.environ:
    CLOCK = Clock(Path(os.environ["SAFEMERGE_PROBE"]))
    CLOCK.write(["interpreter", started_s(), time.time() - started_s()])
    note_end(CLOCK)
    watch_imports(CLOCK)
