"""A full model with an adapter folded in: safemerge beside PEFT, and beside mergekit where it is installed.

Makes a checkpoint (bf16; the shape of TinyLlama or of Llama-2-7B) and a LoRA adapter (r = 8 on all seven
projections) on disk, and writes the full model, each time in a process of its own:

- safemerge: ``export_adapter``, as the command line runs it.
- peft: load, ``merge_and_unload``, ``save_pretrained``, as PEFT's documentation says.
- mergekit: a ``passthrough`` merge of ``model+adapter`` by the Python that --mergekit-python names.

All must write the same weights to within one rounding of bf16, or the run fails. Times are
wall-clock: ``work_s`` after the imports until the call returns, ``durable_s`` until the disk has
confirmed the files as well (safemerge's call waits for that itself), ``whole_s`` with the interpreter's
start. Memory is the peak resident set of the process, mapped pages included (VmHWM; Linux), and what
it is above the resident set after the imports.

    python benchmarks/export.py              # 1.1B; 9 GB of scratch disk
    python benchmarks/export.py --shape 7b   # 41 GB
    python benchmarks/export.py --layers 2   # a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import RESULTS, Json, in_own_process, machine, peak_bytes, settle_page_cache

MODEL, ADAPTER = "aligned", "task"
GOALS = {"memory of peft / ours, above imports": 10.0, "speedup over peft": 1.0}
BEST: dict[str, Callable[..., float]] = {"work_s": min, "durable_s": min, "cpu_s": min, "whole_s": min}
BEST |= {"peak_bytes": max, "above_imports_bytes": max}


# --- the ways, each run in a process of its own ----------------------------------


def prepare_safemerge() -> Callable[[Path], None]:
    """Import safemerge; gives what is measured."""
    from safemerge.engine.exporting import export_adapter

    return lambda folder: _done(export_adapter(folder / MODEL, folder / ADAPTER, output=folder / "safemerge"))


def prepare_peft() -> Callable[[Path], None]:
    """Import PEFT and the model's class; gives what is measured."""
    from peft import PeftModel
    from peft.tuners.lora import LoraModel  # noqa: F401 (imported now, not while it is measured)
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    def work(folder: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder / MODEL, dtype="auto")
        merged = PeftModel.from_pretrained(model, folder / ADAPTER).merge_and_unload()
        merged.save_pretrained(folder / "peft")

    return work


def prepare_mergekit() -> Callable[[Path], None]:
    """Import mergekit; gives what is measured. It folds the adapter in with PEFT, into a cache of its own."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def work(folder: Path) -> None:
        config = MergeConfiguration.model_validate(
            {
                "merge_method": "passthrough",
                "models": [{"model": f"{folder / MODEL}+{folder / ADAPTER}"}],
                "dtype": "bfloat16",
            }
        )
        cache = folder / "mergekit_cache"
        options = MergeOptions(lora_merge_cache=str(cache), copy_tokenizer=False)
        run_merge(config, str(folder / "mergekit"), options)
        shutil.rmtree(cache, ignore_errors=True)

    return work


PREPARE = {"safemerge": prepare_safemerge, "peft": prepare_peft, "mergekit": prepare_mergekit}


def _done(_result: object) -> None:
    """Nothing is kept."""


def run_way(way: str, folder: Path) -> Json:
    """Export in one way and measure it."""
    work = PREPARE[way]()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts anew
    imports_bytes = peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    work(folder)
    work_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    for path in (folder / way).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    peak = peak_bytes()
    return {
        "work_s": work_s,
        "durable_s": time.perf_counter() - start,
        "cpu_s": cpu_s,
        "peak_bytes": peak,
        "above_imports_bytes": peak - imports_bytes,
    }


def compare(first: Path, second: Path) -> Json:
    """How two exported models differ, in steps of bf16; tensor by tensor."""
    import torch
    from safetensors import safe_open

    names = [_names(folder) for folder in (first, second)]
    if names[0].keys() != names[1].keys():
        sys.exit(f"the exports hold different tensors: {sorted(names[0].keys() ^ names[1].keys())[:5]}")
    entries = different = steps = 0
    for name in names[0]:
        tensors = []
        for files in names:
            with safe_open(files[name], framework="pt") as shard:
                tensors.append(shard.get_tensor(name).view(-1))
        entries += len(tensors[0])
        unlike = tensors[0] != tensors[1]
        if bool(unlike.any()):
            # As integers, neighbouring bf16 numbers of one sign differ by one.
            bits = [tensor[unlike].view(torch.int16).int() for tensor in tensors]
            different += len(bits[0])
            steps = max(steps, int((bits[0] - bits[1]).abs().max()))
    return {"entries": entries, "different": different, "largest_steps": steps}


def _names(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            found |= dict.fromkeys(shard.keys(), file)
    return found


# --- orchestration ----------------------------------------------------------------


def main() -> None:
    """Measure, print and keep as JSON."""
    options = _options()
    if options.run:
        way, folder = options.run
        print(json.dumps(run_way(way, Path(folder))))
        return
    if options.compare:
        print(json.dumps(compare(*map(Path, options.compare))))
        return
    from shapes import RANK, SHAPES, pair_bytes

    layers = options.layers or SHAPES[options.shape].layers
    model_bytes = pair_bytes(SHAPES[options.shape], layers) // 2
    copies = 3 + 2 * bool(options.mergekit_python)
    free = shutil.disk_usage(options.scratch or tempfile.gettempdir()).free
    if free < 1.05 * copies * model_bytes:
        needed = 1.05 * copies * model_bytes
        sys.exit(f"expected {needed / 1e9:.0f} GB of free disk, got {free / 1e9:.0f} GB")
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="safemerge-bench-") as name:
        result = _measure(Path(name), options, layers)
    result["shape"] = {"name": options.shape, "layers": layers, "model_bytes": model_bytes, "r": RANK}
    _print(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    kept[f"{options.shape}, {layers} layers"] = result
    options.output.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("1b", "7b"), default="1b")
    parser.add_argument("--layers", type=int, help="decoder blocks (default: all of the shape)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way (default 2)")
    parser.add_argument("--scratch", type=Path, help="folder for inputs and outputs, removed afterwards")
    parser.add_argument("--mergekit-python", type=Path, help="a Python that has mergekit")
    parser.add_argument("--output", type=Path, default=RESULTS / "export.json", help="JSON with the figures")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--compare", nargs=2, metavar=("FOLDER", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(folder: Path, options: argparse.Namespace, layers: int) -> Json:
    from shapes import SHAPES, write_adapter, write_pair

    shape, before = SHAPES[options.shape], machine()
    print("writing the inputs", file=sys.stderr)
    write_pair(folder, shape, layers)
    shutil.rmtree(folder / "unaligned")
    write_adapter(folder / ADAPTER, shape, "all", layers, seed=0)
    script = Path(__file__).resolve()
    ways = ["safemerge", "peft", *(["mergekit"] if options.mergekit_python else [])]
    runs: dict[str, list[Json]] = {way: [] for way in ways}
    differences: Json = {}
    cache = ""
    for _ in range(options.repeats):
        for way in ways:
            os.sync()  # so that no way waits for what another has written
            cache = settle_page_cache(folder)
            if way == "mergekit":
                runs[way].append(_with(options.mergekit_python, script, "--run", way, str(folder)))
            else:
                runs[way].append(in_own_process(script, "--run", way, str(folder)))
            print(f"{way}: {runs[way][-1]['work_s']:.2f} s", file=sys.stderr)
            if way != "safemerge":
                found = in_own_process(script, "--compare", str(folder / "safemerge"), str(folder / way))
                differences[way] = {key: found[key] for key in ("entries", "different", "largest_steps")}
                if found["largest_steps"] > 1:
                    sys.exit(f"safemerge and {way} wrote different weights: {differences[way]}")
                shutil.rmtree(folder / way)
        shutil.rmtree(folder / "safemerge")
    figures = {
        way: {key: best(run[key] for run in of) for key, best in BEST.items()} for way, of in runs.items()
    }
    ratios = _ratios(figures)
    return {
        "machine": before | {"load_after": os.getloadavg()[0], "page_cache": cache},
        "repeats": options.repeats,
        "figures": figures,
        "differences": differences,
        "ratios": ratios,
        "goals_met": {name: ratios[name] >= goal for name, goal in GOALS.items()},
    }


def _with(python: Path, script: Path, *arguments: str) -> Json:
    start = time.perf_counter()
    done = subprocess.run([python, script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    result: Json = json.loads(done.stdout.splitlines()[-1])
    return result | {"whole_s": time.perf_counter() - start}


def _ratios(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    ours = figures["safemerge"]
    ratios: dict[str, float] = {}
    for way, theirs in figures.items():
        if way != "safemerge":
            ratios |= {
                f"speedup over {way}": theirs["work_s"] / ours["work_s"],
                f"speedup over {way}, files on disk": theirs["durable_s"] / ours["durable_s"],
                f"speedup over {way}, whole process": theirs["whole_s"] / ours["whole_s"],
                f"memory of {way} / ours": theirs["peak_bytes"] / ours["peak_bytes"],
                f"memory of {way} / ours, above imports": theirs["above_imports_bytes"]
                / ours["above_imports_bytes"],
            }
    return ratios


def _print(result: dict[str, Any]) -> None:
    shape, of = result["shape"], result["machine"]
    print(f"{shape['name']}, {shape['layers']} layers, {shape['model_bytes'] / 1e9:.1f} GB in bf16")
    print(f"{'':<12}{'work, s':>10}{'on disk, s':>12}{'cpu, s':>10}{'peak, MB':>10}{'above imports, MB':>19}")
    for way, figures in result["figures"].items():
        print(
            f"{way:<12}{figures['work_s']:>10.2f}{figures['durable_s']:>12.2f}{figures['cpu_s']:>10.2f}"
            f"{figures['peak_bytes'] / 1e6:>10.0f}{figures['above_imports_bytes'] / 1e6:>19.0f}"
        )
    for name, value in result["ratios"].items():
        goal = ""
        if name in GOALS:
            goal = f"  (goal {GOALS[name]:g}: {'met' if result['goals_met'][name] else 'MISSED'})"
        print(f"{name}: {value:.2f}{goal}")
    for way, found in result["differences"].items():
        print(f"entries unlike those of {way}: {found['different']} of {found['entries']}, by one step")
    print(
        f"machine: {of['cores']} cores, {of['memory_bytes'] / 1e9:.0f} GB, page cache {of['page_cache']}, "
        f"load {of['load_before']:.1f} before and {of['load_after']:.1f} after"
    )


if __name__ == "__main__":
    main()
