"""A merged adapter at a smaller rank: safemerge beside PEFT's ``svd`` combination, on the same layers.

Makes layers of the shapes of Llama-2-7B with a task and a safety adapter each (r = 8) and stores
0.8·ΔW_task + 0.2·ΔW_safety at rank 8, twice:

- safemerge: factors side by side, then ``compressed``: QR and a small decomposition of the factors.
- peft: ``add_weighted_adapter(combination_type="svd", svd_rank=8)``, which decomposes the sum in full.
  ``svd_full_matrices=False`` is given, which PEFT does not default to: with it PEFT is faster.

Errors are relative distances from the sum in Frobenius norm, measured in float64 on the matrix in full.
The run fails where safemerge's is larger. For updates that exist in full alone (TIES, DARE), the same
``compressed`` is timed on a matrix, beside the smallest error possible, with ``--dense``. Times are
wall-clock, in one process, the best of ``--repeats`` for PEFT and of ten times as many for safemerge.

    python benchmarks/recompress.py                 # q_proj and down_proj, about 2 GB of memory
    python benchmarks/recompress.py --hidden 512    # a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safemerge.core.compress import compressed
from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import scaled, side_by_side
from safemerge.core.pruning import trim_

RANK, SCALE, WEIGHTS = 8, 2.0, (0.8, 0.2)
MLP_RATIO = 11008 / 4096
RESULTS = Path(__file__).parent / "results" / "recompress.json"
GOAL = 500.0


def shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of the layers, for a hidden size."""
    return {"q_proj": (hidden, hidden), "down_proj": (hidden, round(hidden * MLP_RATIO))}


def make_pairs(hidden: int) -> dict[str, tuple[LoraPair, LoraPair]]:
    """Task and safety update of each layer."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for name, (d_out, d_in) in shapes(hidden).items():
        task, safety = (
            LoraPair(
                torch.randn(RANK, d_in, generator=generator) * 0.02,
                torch.randn(d_out, RANK, generator=generator) * 0.02,
                SCALE,
            )
            for _ in ("task", "safety")
        )
        pairs[name] = task, safety
    return pairs


def weighted_sum(task: LoraPair, safety: LoraPair) -> LoraPair:
    """0.8·ΔW_task + 0.2·ΔW_safety as factors."""
    return side_by_side(scaled(task, WEIGHTS[0]), scaled(safety, WEIGHTS[1]))


def run_safemerge(pairs: dict[str, tuple[LoraPair, LoraPair]]) -> dict[str, LoraPair]:
    """Sum and compress every layer."""
    return {name: compressed(weighted_sum(*both), rank=RANK)[0] for name, both in pairs.items()}


def peft_model(pairs: dict[str, tuple[LoraPair, LoraPair]]) -> Any:
    """A PEFT model of bare linear layers that holds both adapters."""
    from peft import LoraConfig, get_peft_model

    base = torch.nn.Module()
    for name, (task, _) in pairs.items():
        base.add_module(name, torch.nn.Linear(task.shape[1], task.shape[0], bias=False))
    config = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=list(pairs))
    model = get_peft_model(base, config, adapter_name="task")
    model.add_adapter("safety", config)
    for name, both in pairs.items():
        layer = model.base_model.model.get_submodule(name)
        for adapter, pair in zip(("task", "safety"), both, strict=True):
            layer.lora_A[adapter].weight.data = pair.lora_a.clone()
            layer.lora_B[adapter].weight.data = pair.lora_b.clone()
    return model


def run_peft(model: Any, names: list[str]) -> dict[str, LoraPair]:
    """Let PEFT sum and compress every layer."""
    model.base_model.add_weighted_adapter(
        ["task", "safety"],
        list(WEIGHTS),
        "merged",
        combination_type="svd",
        svd_rank=RANK,
        svd_full_matrices=False,
    )
    merged = {}
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        factors = (layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach())
        merged[name] = LoraPair(*factors, layer.scaling["merged"])
    model.delete_adapter("merged")
    return merged


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest time in seconds, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return min(times), result


def distance(pair: LoraPair, update: Tensor) -> float:
    """Relative error of a pair beside the update in full, float64."""
    return float((pair.delta(torch.float64) - update).norm() / update.norm())


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run both ways and, where asked for, updates in full."""
    machine = _machine()
    pairs = make_pairs(options.hidden)
    ours_s, ours = timed(lambda: run_safemerge(pairs), 10 * options.repeats)
    model = peft_model(pairs)
    peft_s, theirs = timed(lambda: run_peft(model, list(pairs)), options.repeats)
    errors = {}
    for name, both in pairs.items():
        update = weighted_sum(*both).delta(torch.float64)
        errors[name] = {"safemerge": distance(ours[name], update), "peft": distance(theirs[name], update)}
        # Both hold the best approximation; the rounding of its factors to fp32 adds less than 1e-7.
        if errors[name]["safemerge"] > errors[name]["peft"] + 1e-7:
            sys.exit(f"{name}: safemerge's error is larger: {errors[name]}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": {"hidden": options.hidden, "layers": shapes(options.hidden), "r": RANK, "stored_rank": RANK},
        "machine": machine | {"load_after": os.getloadavg()[0]},
        "repeats": options.repeats,
        "figures": {"safemerge_s": ours_s, "peft_s": peft_s},
        "ratios": {"speedup": peft_s / ours_s},
        "errors": errors,
        "goals_met": {"speedup": peft_s / ours_s >= GOAL},
    }
    return result | ({"updates_in_full": dense(pairs, options.repeats)} if options.dense else {})


def dense(pairs: dict[str, tuple[LoraPair, LoraPair]], repeats: int) -> dict[str, Any]:
    """Times and errors of updates in full, trimmed to a fifth of their entries, at rank 16."""
    found = {}
    for name, (task, _) in pairs.items():
        update = trim_(task.delta(), 0.2)
        seconds, (_, error) = timed(partial(compressed, update, rank=2 * RANK), repeats)
        values = torch.linalg.svdvals(update)
        best = float(values[2 * RANK :].norm() / values.norm())
        found[name] = {"compressed_s": seconds, "error": error, "smallest_error": best}
    return found


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "peft")}
        | {"python": platform.python_version()},
    }


def _print_table(result: dict[str, Any]) -> None:
    figures, machine = result["figures"], result["machine"]
    print(f"peft {figures['peft_s']:.2f} s, safemerge {figures['safemerge_s'] * 1e3:.1f} ms: ", end="")
    print(f"{result['ratios']['speedup']:.0f} times, goal {GOAL:.0f}: ", end="")
    print("met" if result["goals_met"]["speedup"] else "MISSED")
    for name, errors in result["errors"].items():
        print(f"{name}: error {errors['safemerge']:.9f}, peft's {errors['peft']:.9f}")
    for name, found in result.get("updates_in_full", {}).items():
        print(
            f"{name} in full: {found['compressed_s']:.2f} s, error {found['error']:.6f}, "
            f"smallest possible {found['smallest_error']:.6f}"
        )
    print(
        f"machine: {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"
    )


def main() -> None:
    """Run the comparison, print it and keep it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=4096, help="hidden size (default 4096, as at 7B)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of PEFT (default 1)")
    parser.add_argument("--dense", action="store_true", help="also time updates that exist in full alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file with the figures")
    options = parser.parse_args()
    result = compare(options)
    _print_table(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
