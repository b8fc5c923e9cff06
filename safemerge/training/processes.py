"""Processes that train one adapter together, one a device, started by PyTorch's elastic launcher.

It is the launcher behind ``torchrun`` and ``accelerate launch``. Given a function and not a
command, it keeps its processes in the caller's process group: what ends the caller's group ends
them too, and they end themselves when the caller dies.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from safemerge import errors
from safemerge.errors import ConfigError, SafemergeError

Result = TypeVar("Result")


def launched_processes() -> int | None:
    """Number of processes that a launcher started this command in; None where none did."""
    size = os.environ.get("WORLD_SIZE")
    return None if size is None else int(size)


def is_main_process() -> bool:
    """Whether this process speaks and writes for all; true where there is no other."""
    return int(os.environ.get("RANK", "0")) == 0


def check_processes(processes: int) -> None:
    """Check that so many processes can train together here.

    Raises:
        ConfigError: a launcher started another number, or there are fewer devices.
    """
    launched = launched_processes()
    if launched not in (None, processes):
        raise ConfigError(f"processes: expected {launched}, as many as the launcher started, got {processes}")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else here
    if here > max(1, devices):
        raise ConfigError(f"processes: expected at most {devices}, one a visible device, got {here}")


def run_together(processes: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in several processes of this machine, as one torch.distributed group.

    Args:
        processes: how many.
        function: a function of a module, called in each.
        arguments: what it is called with; they are pickled.

    Returns:
        What it returned in the main process.

    Raises:
        SafemergeError: as the process that failed first raised it.
        torch.cuda.OutOfMemoryError: likewise.
        ChildFailedError: a process ended otherwise, such as by a signal.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="safemerge-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            with _signal_handlers_restored():
                return elastic_launch(config, _in_process)(function, *arguments)[0]  # type: ignore[no-any-return]
        except ChildFailedError as error:
            raise _cause(error) from error


@contextmanager
def _signal_handlers_restored() -> Iterator[None]:
    """The launcher ends its processes on these signals, and leaves its handlers behind."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _in_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What each process runs: it was started anew, so it logs nothing yet and uses every core."""
    logging.basicConfig(
        level=logging.INFO if is_main_process() else logging.WARNING, format="%(message)s", stream=sys.stderr
    )
    warnings.simplefilter("ignore", FutureWarning)
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"]))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Accelerate would set others
    return function(*arguments)


def _cause(failed: Any) -> BaseException:
    """The error of the process that failed first, where it is one that callers handle."""
    _, failure = failed.get_first_failure()
    data = failure.error_file_data.get("message")
    name, _, text = str(data["message"] if isinstance(data, dict) else data).partition(": ")
    if name == torch.cuda.OutOfMemoryError.__name__:
        return torch.cuda.OutOfMemoryError(text)
    known = getattr(errors, name, None)
    if isinstance(known, type) and issubclass(known, SafemergeError):
        return known(text)
    return failed  # type: ignore[no-any-return]
