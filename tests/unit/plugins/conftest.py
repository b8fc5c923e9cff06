"""A stand-in for the ``safemerge`` command that fails in every way a step can."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FAKE_STEP = '''
import argparse, json, os, signal, subprocess, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("step_word")
parser.add_argument("name")
parser.add_argument("request")
parser.add_argument("--result")
parser.add_argument("--die-with-parent", action="store_true")
args = parser.parse_args()
options = json.loads(args.request)["options"]


def result(**parts):
    record = {"step": args.name, "run_id": "run-1", "inputs_digest": "d", **parts}
    with open(args.result, "w") as file:
        json.dump(record, file)


def start_child():
    """A grandchild of the test, with our output open."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("pids", os.getpid(), child.pid)


match args.name:
    case "echo":
        for line in options["lines"]:
            print(line)
        print("to stderr", file=sys.stderr)
        result(**options.get("result", {}))
    case "environment":
        names = ("MLFLOW_TRACKING_URI", "HF_TOKEN")
        result(figures={name: os.environ[name] for name in names})
    case "request":
        result(figures={"request": args.request, "argv": " ".join(sys.argv[1:])})
    case "progress":
        for percent in range(0, 101, 10):
            print(f"\\r\\x1b[32m{percent} %\\x1b[0m", end="")
        print()
        print("no line end", end="")
        result()
    case "fault":
        print("some talk")
        print("error: what: expected this, got that", file=sys.stderr)
        print("more talk")
        sys.exit(options["code"])
    case "crash":
        raise RuntimeError("out of memory")
    case "silent":
        os.kill(os.getpid(), signal.SIGKILL)
    case "no_result":
        pass
    case "straggler":
        start_child()
        result()
    case "hang":
        if args.die_with_parent:
            from safemerge.cli.step import _die_with_parent
            _die_with_parent()
        if options.get("stubborn"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        start_child()
        time.sleep(600)
'''


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, str]:
    """How to call the stand-in."""
    script = tmp_path / "fake_step.py"
    script.write_text(FAKE_STEP, encoding="utf-8")
    return sys.executable, str(script)
