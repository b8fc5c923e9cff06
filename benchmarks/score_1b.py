"""SafeMERGE on a pair of 1.1-billion-parameter models: safemerge beside the textbook way.

Makes the pair (the shape of TinyLlama: hidden 2048, 22 layers, grouped-query attention,
bf16) and two LoRA adapters (r = 8 on q and v) on disk, then merges them twice, each
time in a process of its own:

- safemerge: ``merge_adapters`` as the command line runs it, with digests and plot.
- textbook: as the method is written down and published. Both models are loaded in
  fp32, V = aligned − unaligned and the d×d projection C = V·Vᵀ/‖V‖ are built and kept
  for every adapted matrix, and each cosine is taken between C·ΔW and ΔW. Written from
  the formula; the factors of chosen layers are then concatenated, which is exact.
  ``--textbook-dtype bfloat16`` loads the models as they are stored: transformers then
  maps the files and only what is touched counts as resident.

Both must choose the same layers with the same cosines, or the run fails. Times are
wall-clock: ``work_s`` after the imports, ``whole_s`` with the interpreter's start;
``cpu_s`` is the processor time of all threads, which a busy machine changes least.
Memory is the peak resident set of the process, mapped pages included (VmHWM), so the
figure needs Linux.

    python benchmarks/score_1b.py            # the 1.1B pair, 4.4 GB of scratch disk
    python benchmarks/score_1b.py --layers 2 # a quick look
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 4, 32000
RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "v_proj")
QUANTILE = 0.5
RESULTS = Path(__file__).parent / "results" / "score_1b.json"
GOALS = {"work_speedup": 20.0, "memory_ratio": 15.0, "safemerge_peak_bytes": 1e9}


# --- inputs ------------------------------------------------------------------


def make_inputs(folder: Path, layers: int) -> None:
    """Write ``aligned``, ``unaligned``, ``task`` and ``safety`` below the folder."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    generator = torch.Generator().manual_seed(0)
    shapes = _checkpoint_shapes(layers)
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    for tensor in tensors.values():
        tensor.normal_(0, 0.02, generator=generator)
    for name in ("aligned", "unaligned"):
        (folder / name).mkdir()
        config.save_pretrained(folder / name)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        for module, tensor in tensors.items():  # alignment moved the weights of every block a little
            if ".layers." in module and tensor.dim() == 2:
                noise = torch.empty_like(tensor).normal_(0, 0.002, generator=generator)
                tensor.add_(noise)
    for name in ("task", "safety"):
        (folder / name).mkdir()
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=list(TARGETS),
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(folder / "aligned"),
        ).save_pretrained(folder / name)
        factors = {}
        for module in adapted_modules(layers):
            d_out, d_in = shapes[f"{module}.weight"]
            for factor, shape in (("A", (RANK, d_in)), ("B", (d_out, RANK))):
                key = f"base_model.model.{module}.lora_{factor}.weight"
                factors[key] = torch.randn(shape, generator=generator) * 0.02
        save_file(factors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})


def _checkpoint_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    kv = HIDDEN // HEADS * KV_HEADS
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def adapted_modules(layers: int) -> list[str]:
    """Full paths of the matrices with a LoRA update."""
    return [f"model.layers.{layer}.self_attn.{target}" for layer in range(layers) for target in TARGETS]


# --- the two ways --------------------------------------------------------------


def run_safemerge(folder: Path) -> dict[str, Any]:
    """Merge with safemerge; times, peak memory and what came out."""
    from safemerge.merging import merge_adapters

    start = _now()
    report = merge_adapters(
        folder / "task",
        folder / "safety",
        folder / "aligned",
        folder / "unaligned",
        output=folder / "merged_safemerge",
        quantile=QUANTILE,
    )
    return _measured(start, {layer.module: (layer.cosine, layer.merged) for layer in report.layers})


def run_textbook(folder: Path, dtype: str) -> dict[str, Any]:
    """Merge as the method is written down; times, peak memory and what came out."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    start = _now()
    aligned = AutoModelForCausalLM.from_pretrained(folder / "aligned", dtype=dtype)
    unaligned = AutoModelForCausalLM.from_pretrained(folder / "unaligned", dtype=dtype)
    task, safety = (load_file(folder / name / "adapter_model.safetensors") for name in ("task", "safety"))
    modules = [key.removesuffix(".lora_A.weight") for key in task if key.endswith(".lora_A.weight")]

    projections = {}
    for module in modules:
        path = module.removeprefix("base_model.model.")
        alignment = aligned.get_submodule(path).weight.float() - unaligned.get_submodule(path).weight.float()
        projections[module] = (alignment @ alignment.T / alignment.norm()).detach()

    cosines = {}
    for module in modules:
        delta = task[f"{module}.lora_B.weight"] @ task[f"{module}.lora_A.weight"]
        projected = projections[module] @ delta
        # Over millions of entries fp32 sums are off by 1e-4, enough to choose other layers.
        dot = torch.sum(projected * delta, dtype=torch.float64)
        norms = [torch.linalg.vector_norm(matrix, dtype=torch.float64) for matrix in (projected, delta)]
        cosines[module] = (dot / (norms[0] * norms[1])).item()

    chosen = set(sorted(modules, key=cosines.__getitem__)[: round(QUANTILE * len(modules))])
    merged = {}
    for module in modules:
        weights = (0.8, 0.2) if module in chosen else (1.0, 0.0)
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        merged[a] = torch.cat([task[a], safety[a]])
        merged[b] = torch.cat([weights[0] * task[b], weights[1] * safety[b]], dim=1)
    save_file(merged, folder / "merged_textbook.safetensors")
    return _measured(start, {m.removeprefix("base_model.model."): (cosines[m], m in chosen) for m in modules})


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _measured(start: tuple[float, float], layers: dict[str, Any]) -> dict[str, Any]:
    work_s, cpu_s = (end - begin for begin, end in zip(start, _now(), strict=True))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kib = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]
    return {"work_s": work_s, "cpu_s": cpu_s, "peak_bytes": peak_kib * 1024, "layers": layers}


# --- orchestration -----------------------------------------------------------


def _in_own_process(way: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    _warm_page_cache(folder)
    command = [sys.executable, str(Path(__file__).resolve()), "--run", way, str(folder)]
    command += ["--layers", str(options.layers), "--textbook-dtype", options.textbook_dtype]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    whole_s = time.perf_counter() - start
    return json.loads(done.stdout or "{}") | {"whole_s": whole_s}


def _warm_page_cache(folder: Path) -> None:
    """Read both checkpoints once, so that neither way pays for a cold disk."""
    for path in folder.glob("*/model.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _check_agreement(ours: dict[str, Any], textbook: dict[str, Any]) -> float:
    """Largest difference between the cosines; exits where the outcomes are not the same."""
    if ours.keys() != textbook.keys():
        sys.exit("the two ways looked at different layers")
    if wrong := [module for module in ours if ours[module][1] != textbook[module][1]]:
        sys.exit(f"the two ways chose different layers: {wrong}")
    return max(abs(ours[module][0] - textbook[module][0]) for module in ours)


def _machine() -> dict[str, Any]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes,
        "architecture": platform.machine(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")}
        | {"python": platform.python_version()},
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run both ways in turn, ``repeats`` times; the best time and the largest memory of each count."""
    machine = _machine()
    runs: dict[str, list[dict[str, Any]]] = {"safemerge": [], "textbook": []}
    for _ in range(options.repeats):
        # A fresh folder each time: an output folder must not exist.
        with tempfile.TemporaryDirectory(dir=options.scratch, prefix="safemerge-bench-") as name:
            folder = Path(name)
            _in_own_process("inputs", folder, options)
            for way, measured in runs.items():
                measured.append(_in_own_process(way, folder, options))
                print(f"{way}: {measured[-1]['work_s']:.2f} s", file=sys.stderr)
    difference = max(
        _check_agreement(ours["layers"], textbook["layers"])
        for ours, textbook in zip(runs["safemerge"], runs["textbook"], strict=True)
    )
    figures = {
        way: {
            "work_s": min(run["work_s"] for run in measured),
            "cpu_s": min(run["cpu_s"] for run in measured),
            "whole_s": min(run["whole_s"] for run in measured),
            "peak_bytes": max(run["peak_bytes"] for run in measured),
        }
        for way, measured in runs.items()
    }
    ours, textbook = figures["safemerge"], figures["textbook"]
    ratios = {
        "work_speedup": textbook["work_s"] / ours["work_s"],
        "cpu_speedup": textbook["cpu_s"] / ours["cpu_s"],
        "whole_speedup": textbook["whole_s"] / ours["whole_s"],
        "memory_ratio": textbook["peak_bytes"] / ours["peak_bytes"],
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": {
            "hidden": HIDDEN,
            "layers": options.layers,
            "adapted_matrices": len(adapted_modules(options.layers)),
            "r": RANK,
        },
        "machine": machine | {"load_after": os.getloadavg()[0]},
        "repeats": options.repeats,
        "textbook_dtype": options.textbook_dtype,
        "figures": figures,
        "ratios": ratios,
        "largest_cosine_difference": difference,
        "goals_met": {
            "work_speedup": ratios["work_speedup"] >= GOALS["work_speedup"],
            "memory_ratio": ratios["memory_ratio"] >= GOALS["memory_ratio"],
            "safemerge_peak_bytes": ours["peak_bytes"] < GOALS["safemerge_peak_bytes"],
        },
    }


def _print_table(result: dict[str, Any]) -> None:
    figures, ratios, machine = result["figures"], result["ratios"], result["machine"]
    print(f"{'':<28}{'textbook':>12}{'safemerge':>12}{'ratio':>9}")
    for label, key, ratio, unit, form in (
        ("time after imports, s", "work_s", "work_speedup", 1, ".2f"),
        ("processor time of that, s", "cpu_s", "cpu_speedup", 1, ".2f"),
        ("time of the process, s", "whole_s", "whole_speedup", 1, ".2f"),
        ("peak resident memory, MB", "peak_bytes", "memory_ratio", 1e6, ".0f"),
    ):
        textbook, ours = (format(figures[way][key] / unit, form) for way in ("textbook", "safemerge"))
        print(f"{label:<28}{textbook:>12}{ours:>12}{ratios[ratio]:>8.1f}x")
    print(f"largest difference of a cosine: {result['largest_cosine_difference']:.1e}")
    print(
        f"machine: {machine['cores']} cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"load {machine['load_before']:.1f} before and {machine['load_after']:.1f} after"
    )
    for goal, met in result["goals_met"].items():
        print(f"goal {goal} ({GOALS[goal]:g}): {'met' if met else 'MISSED'}")


def main() -> None:
    """Run the comparison, print it and keep it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=22, help="decoder blocks of both models (default 22)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way (default 2)")
    parser.add_argument("--scratch", type=Path, help="folder for the inputs, removed afterwards")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file with the figures")
    parser.add_argument(
        "--textbook-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="how the textbook way loads the models",
    )
    parser.add_argument("--run", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _run(options.run[0], Path(options.run[1]), options)
        return
    result = compare(options)
    _print_table(result)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _run(way: str, folder: Path, options: argparse.Namespace) -> None:
    """What a child process does."""
    if way == "inputs":
        make_inputs(folder, options.layers)
    elif way == "safemerge":
        print(json.dumps(run_safemerge(folder)))
    else:
        print(json.dumps(run_textbook(folder, options.textbook_dtype)))


if __name__ == "__main__":
    main()
