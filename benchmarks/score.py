"""Scoring on models of real size: safemerge beside the textbook way and beside the floor.

Makes a pair of checkpoints (bf16; the shape of TinyLlama or of Llama-2-7B) and LoRA adapters (r = 8) on
disk, and measures what is asked for, each in a process of its own (see ways.py):

- merge: ``merge_adapters`` as the command line runs it, with digests, report and plot; with several
  --layers, adapters of the first so many layers each, which shows how time and memory grow.
- textbook: as the method is written down and published. It must choose the same layers with the same
  cosines, or the run fails. Where memory does not suffice, that is the result.
- floor: scoring beside reading the same tensors into buffers that are there already, widening them to
  fp32 and subtracting, whole or in blocks that fit a cache; in one process.
- many: one adapter beside --adapters in one pass.
- sweep: one merge beside fifty candidates (chosen and reported, one written) from one scoring.

Times are wall-clock: ``work_s`` after the imports, ``whole_s`` with the interpreter's start; ``cpu_s``
is the processor time of all threads, which a busy machine changes least. Memory is the peak resident
set of the process, mapped pages included (VmHWM), so the figure needs Linux. Weights are in the page cache
where both models fit into half of the memory; otherwise they are evicted before each way.

    python benchmarks/score.py                                  # 1.1B, q and v; 4.4 GB of scratch disk
    python benchmarks/score.py --targets all
    python benchmarks/score.py --shape 7b --targets all --ways merge --layers 8 16 32   # 27 GB
    python benchmarks/score.py --layers 2                       # a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import Json, in_own_process, machine, save, settle_page_cache
from shapes import RANK, SHAPES, TARGETS, pair_bytes, write_adapter, write_pair

WAYS = ("merge", "textbook", "floor", "many", "sweep")
GOALS: dict[str, tuple[str, dict[str, float]]] = {
    "speedup over the textbook way": ("at least", {"qv": 50, "all": 10}),
    "memory of the textbook way / ours": ("at least", {"qv": 20, "all": 20}),
    "score / floor": ("at most", {"qv": 6, "all": 3}),
    "score with digests / floor": ("at most", {"qv": 6, "all": 3}),
    "many / one": ("at most", {"all": 3}),
    "fifty candidates / one": ("at most", {"qv": 1.2, "all": 1.2}),
    "peak resident memory, GB": ("at most", {"qv": 1.5, "all": 1.5}),
}


def main() -> None:
    """Measure, print and keep as JSON."""
    options = _options()
    if options.run:
        print(json.dumps(_run(options)))
        return
    needed = pair_bytes(SHAPES[options.shape], max(options.layers))
    free = shutil.disk_usage(options.scratch or tempfile.gettempdir()).free
    if free < 1.1 * needed:
        sys.exit(f"expected {1.1 * needed / 1e9:.0f} GB of free disk for the pair, got {free / 1e9:.0f} GB")
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="safemerge-bench-") as name:
        result = _measure(Path(name), options)
    _print(result)
    layers = "" if max(options.layers) == SHAPES[options.shape].layers else f"-{max(options.layers)}-layers"
    ways = "" if options.ways == list(WAYS) else f"-{'-'.join(options.ways)}"
    print(f"kept in {save(f'score-{options.shape}-{options.targets}{ways}{layers}', result)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--targets", choices=TARGETS, default="qv", help="adapted projections")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to measure")
    parser.add_argument("--layers", nargs="+", type=int, help="decoder blocks (default: all of the shape)")
    parser.add_argument("--adapters", type=int, default=32, help="adapters scored by many (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way but textbook (default 3)")
    parser.add_argument("--scratch", type=Path, help="folder for the inputs, removed afterwards")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers = sorted(options.layers or [SHAPES[options.shape].layers])
    return options


def _run(options: argparse.Namespace) -> Json:
    import ways

    way, folder = options.run
    arguments: list[Any] = [
        Path(folder), SHAPES[options.shape], options.targets, options.layers[-1], options.repeats
    ]  # fmt: skip
    if way == "many":
        arguments.append(options.adapters)
    result: Json = getattr(ways, f"run_{way}")(*arguments)
    return result


def _measure(folder: Path, options: argparse.Namespace) -> Json:
    shape, most = SHAPES[options.shape], max(options.layers)
    print(f"writing {pair_bytes(shape, most) / 1e9:.1f} GB of inputs", file=sys.stderr)
    write_pair(folder, shape, most)
    for layers in options.layers:
        write_adapter(folder / f"safety-{layers}", shape, options.targets, layers, seed=1000)
        for number in range(options.adapters if "many" in options.ways else 1):
            write_adapter(folder / f"task-{number}-{layers}", shape, options.targets, layers, seed=number)
    before, cache = machine(), ""
    figures: Json = {}
    by_layers: Json = {}
    for way in options.ways:
        for layers in options.layers if way == "merge" else [most]:
            cache = settle_page_cache(folder)
            found = in_own_process(
                Path(__file__).resolve(), "--run", way, str(folder), "--shape", options.shape,
                "--targets", options.targets, "--layers", str(layers), "--repeats", str(options.repeats),
                "--adapters", str(options.adapters),
            )  # fmt: skip
            whole_s = found.pop("whole_s")
            print(f"{way}, {layers} layers: {whole_s:.1f} s", file=sys.stderr)
            if way in found:
                found[way]["whole_s"] = whole_s
            figures |= found
            if way == "merge":
                by_layers[layers] = {k: v for k, v in found["merge"].items() if k != "layers"}
    difference = _check_agreement(figures)
    ratios = _ratios(figures)
    return {
        "shape": {"name": options.shape, "layers": most, "targets": options.targets, "r": RANK},
        "machine": before | {"load_after": os.getloadavg()[0], "page_cache": cache},
        "repeats": options.repeats,
        "figures": figures,
        "by_layers": by_layers,
        "largest_cosine_difference": difference,
        "ratios": ratios,
        "goals_met": {name: _met(name, ratios[name], options.targets) for name in GOALS if name in ratios},
    }


def _check_agreement(figures: Json) -> float | None:
    """Largest difference between the cosines; leaves where the two ways disagree."""
    ours, textbook = (figures.get(way, {}).pop("layers", None) for way in ("merge", "textbook"))
    if ours is None or textbook is None:
        return None
    if ours.keys() != textbook.keys():
        sys.exit("the two ways looked at different layers")
    if wrong := [module for module in ours if ours[module][1] != textbook[module][1]]:
        sys.exit(f"the two ways chose different layers: {wrong}")
    return float(max(abs(ours[module][0] - textbook[module][0]) for module in ours))


def _ratios(figures: Json) -> dict[str, float]:
    def ratio(above: str, below: str, key: str = "work_s") -> dict[str, float]:
        values = [figures.get(way, {}).get(key) for way in (above, below)]
        return {f"{above} / {below}": values[0] / values[1]} if all(values) else {}

    named = {
        "speedup over the textbook way": ratio("textbook", "merge"),
        "speedup in processor time": ratio("textbook", "merge", "cpu_s"),
        "memory of the textbook way / ours": ratio("textbook", "merge", "peak_bytes"),
        "score / floor": ratio("score", "floor"),
        "score with digests / floor": ratio("score_with_digests", "floor"),
        "score / blocked floor": ratio("score", "floor_blocked"),
        "score with digests / blocked floor": ratio("score_with_digests", "floor_blocked"),
        "many / one": ratio("many", "one"),
        "many / one, without digests": ratio("many_without_digests", "one_without_digests"),
        "fifty candidates / one": ratio("sweep_fifty", "sweep_one"),
    }
    found = {name: next(iter(values.values())) for name, values in named.items() if values}
    if "merge" in figures:
        found["peak resident memory, GB"] = figures["merge"]["peak_bytes"] / 1e9
    return found


def _met(name: str, value: float, targets: str) -> bool | None:
    direction, goals = GOALS[name]
    if targets not in goals:
        return None
    return value >= goals[targets] if direction == "at least" else value <= goals[targets]


def _print(result: Json) -> None:
    shape, machine_ = result["shape"], result["machine"]
    print(
        f"{shape['name']}, {shape['layers']} layers, {shape['targets']} projections, bf16, r = {shape['r']}"
    )
    print(f"{'':<24}{'work, s':>10}{'cpu, s':>10}{'peak, MB':>10}")
    for way, of in result["figures"].items():
        if of.get("out_of_memory"):
            print(f"{way:<24}out of memory: needs {of['needed_bytes'] / 1e9:.1f} GB and more")
            continue
        peak = f"{of['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in of else ""
        print(f"{way:<24}{of['work_s']:>10.3f}{of['cpu_s']:>10.3f}{peak:>10}")
    for layers, of in result["by_layers"].items():
        print(f"merge, {layers} layers: {of['work_s']:.2f} s, {of['peak_bytes'] / 1e6:.0f} MB")
    for name, value in result["ratios"].items():
        met = result["goals_met"].get(name)
        direction, goals = GOALS.get(name, ("", {}))
        goal = (
            ""
            if met is None
            else f"  ({direction} {goals[shape['targets']]:g}: {'met' if met else 'MISSED'})"
        )
        print(f"{name}: {value:.2f}{goal}")
    if result["largest_cosine_difference"] is not None:
        print(f"largest difference of a cosine: {result['largest_cosine_difference']:.1e}")
    print(
        f"machine: {machine_['cores']} cores, {machine_['memory_bytes'] / 1e9:.0f} GB, "
        f"page cache {machine_['page_cache']}, "
        f"load {machine_['load_before']:.1f} before and {machine_['load_after']:.1f} after"
    )


if __name__ == "__main__":
    main()
