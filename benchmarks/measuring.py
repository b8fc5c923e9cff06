"""What all benchmarks measure with: times, peak memory, the machine, and processes of their own."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Json = dict[str, Any]


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Wall-clock time and processor time of all threads, which a busy machine changes least; the result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"work_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}, result


def best_of(repeats: int, ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, dict[str, float]], Json]:
    """The best times of each way, run in turn so that all meet the same machine; their last results."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    results: Json = {}
    for _ in range(repeats):
        for way, work in ways.items():
            measured, results[way] = timed(work)
            runs[way].append(measured)
    best = {way: {key: min(run[key] for run in of) for key in of[0]} for way, of in runs.items()}
    return best, results


def peak_bytes() -> int:
    """Peak resident set of this process, mapped pages included (VmHWM; Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def available_bytes() -> int:
    """Memory that a new process can have without swapping."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    return int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024  # type: ignore[index]


def in_own_process(script: Path, *arguments: str) -> Json:
    """Run a script that prints JSON; ``whole_s`` is added, the interpreter's start included."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(script), *arguments], check=True, stdout=-1, text=True)
    result: Json = json.loads(done.stdout)
    return result | {"whole_s": time.perf_counter() - start}


def settle_page_cache(folder: Path) -> str:
    """Put all weights in the page cache where they fit well, else none: every way then meets the same."""
    files = sorted(folder.glob("*/*.safetensors"))
    warm = sum(file.stat().st_size for file in files) < available_bytes() / 2
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is still being written slows the rest, and cannot be dropped
            if warm:
                while file.read(1 << 24):
                    pass
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "warm" if warm else "cold"


def machine() -> Json:
    """What the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")}
        | {"python": platform.python_version()},
    }


def save(name: str, result: Json) -> Path:
    """Keep a result as JSON; returns its file."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return file
