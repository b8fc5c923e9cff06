"""The ways of scoring that are measured, each as a function of the inputs' folder and of the layers adapted.

All give ``{way: figures}``: ``work_s`` and ``cpu_s`` after the imports, ``peak_bytes`` where the way had
a process of its own, and with ``layers`` what came out, to be compared.
"""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import torch
from measuring import Json, available_bytes, best_of, peak_bytes, timed
from shapes import Shape

QUANTILE = 0.5
CANDIDATES = 50
_BLOCK_ELEMENTS = 2**18


def inputs(folder: Path, layers: int) -> tuple[Path, Path, Path, Path]:
    """Task adapter, safety adapter, aligned model, unaligned model."""
    return folder / f"task-0-{layers}", folder / f"safety-{layers}", folder / "aligned", folder / "unaligned"


def run_merge(folder: Path, _shape: Shape, _targets: str, layers: int, repeats: int) -> Json:
    """``merge_adapters`` as the command line runs it, with digests, report and plot: in a fresh process."""
    import safemerge.plots  # noqa: F401 - imports are not measured
    from safemerge.engine.merging import merge_adapters

    output = folder / "merged"

    def merge() -> Any:
        shutil.rmtree(output, ignore_errors=True)
        return merge_adapters(*inputs(folder, layers), output=output, quantile=QUANTILE)

    first, report = timed(merge)
    best, _ = best_of(repeats - 1, {"merge": merge}) if repeats > 1 else ({"merge": first}, {})
    figures = {key: min(first[key], best["merge"][key]) for key in first}
    found = {layer.module: (layer.cosine, layer.merged) for layer in report.layers}
    return {"merge": figures | {"first_s": first["work_s"], "peak_bytes": peak_bytes(), "layers": found}}


# --- the textbook way ----------------------------------------------------------


def textbook_bytes(shape: Shape, targets: str, layers: int) -> int:
    """Least memory of the textbook way: two models in fp32, and every projection."""
    projections = sum(d_out**2 for d_out, _ in shape.adapted(targets, layers).values())
    return 4 * (2 * shape.parameters(layers) + projections)


def run_textbook(folder: Path, shape: Shape, targets: str, layers: int, _repeats: int) -> Json:
    """The method as it is written down and published; refused by the kernel rather than killed.

    Both models are loaded in fp32, V and the d×d projection C = V·Vᵀ/‖V‖ are built and kept for every
    adapted matrix, and each cosine is taken between C·ΔW and ΔW. Written from the formula; the factors
    of chosen layers are then concatenated, which is exact.
    """
    from transformers import AutoModelForCausalLM  # noqa: F401 - imports are not measured

    needed, limit = textbook_bytes(shape, targets, layers), int(0.95 * available_bytes())
    if needed > limit:
        return {"textbook": {"out_of_memory": True, "needed_bytes": needed, "available_bytes": limit}}
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        figures, found = timed(lambda: _textbook(folder, layers))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"textbook": {"out_of_memory": True, "needed_bytes": needed, "available_bytes": limit}}
    return {"textbook": figures | {"peak_bytes": peak_bytes(), "needed_bytes": needed, "layers": found}}


def _textbook(folder: Path, layers: int) -> Json:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    task_folder, safety_folder, *models = inputs(folder, layers)
    aligned, unaligned = (AutoModelForCausalLM.from_pretrained(model, dtype="float32") for model in models)
    task, safety = (load_file(path / "adapter_model.safetensors") for path in (task_folder, safety_folder))
    modules = [key.removesuffix(".lora_A.weight") for key in task if key.endswith(".lora_A.weight")]

    projections = {}
    for module in modules:
        path = module.removeprefix("base_model.model.")
        alignment = aligned.get_submodule(path).weight - unaligned.get_submodule(path).weight
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
    return {
        module.removeprefix("base_model.model."): (cosines[module], module in chosen) for module in modules
    }


# --- the floor -----------------------------------------------------------------


class _Floor:
    """Reading the tensors into buffers that are there already, widening them to fp32 and subtracting."""

    def __init__(self, folder: Path, modules: dict[str, tuple[int, int]]) -> None:
        from safemerge.storage.checkpoints import Checkpoint

        largest = max(d_out * d_in for d_out, d_in in modules.values())
        self.raw = torch.empty(2, largest, dtype=torch.bfloat16)
        self.wide = torch.empty(2, largest)
        self.places = []
        checkpoints = [Checkpoint.open(folder / name) for name in ("aligned", "unaligned")]
        for module, (d_out, d_in) in modules.items():
            files = [checkpoint.tensors[f"{module}.weight"].file for checkpoint in checkpoints]
            self.places.append(([(file, _offset(file, f"{module}.weight")) for file in files], d_out * d_in))

    def run(self, block: int | None) -> None:
        """Whole tensors, or blocks of so many elements."""
        files = {file: os.open(file, os.O_RDONLY) for places, _ in self.places for file, _ in places}
        for places, elements in self.places:
            step = block or elements
            for first in range(0, elements, step):
                count = min(step, elements - first)
                for raw, wide, (file, offset) in zip(self.raw, self.wide, places, strict=True):
                    view = raw[:count].view(torch.uint8).numpy()
                    assert os.preadv(files[file], [view], offset + 2 * first) == 2 * count
                    wide[:count].copy_(raw[:count])
                self.wide[0, :count].sub_(self.wide[1, :count])
        for number in files.values():
            os.close(number)


def _offset(file: Path, name: str) -> int:
    """Where a tensor's bytes begin in a safetensors file."""
    import json

    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start: int = json.loads(opened.read(length))[name]["data_offsets"][0]
    return 8 + length + start


def run_floor(folder: Path, shape: Shape, targets: str, layers: int, repeats: int) -> Json:
    """The floor and scoring in one process, in turn: with the models' digests and without."""
    from safemerge.engine.scores import score_adapters

    floor = _Floor(folder, shape.adapted(targets, layers))
    task, _, *models = inputs(folder, layers)
    best, _ = best_of(
        repeats + 1,
        {
            "floor": lambda: floor.run(None),
            "floor_blocked": lambda: floor.run(_BLOCK_ELEMENTS),
            "score": lambda: score_adapters(task, None, *models, digests=False),
            "score_with_digests": lambda: score_adapters(task, None, *models),
        },
    )
    return best


# --- many at once ------------------------------------------------------------------


def run_many(folder: Path, _shape: Shape, _targets: str, layers: int, repeats: int, adapters: int) -> Json:
    """One adapter and many in a pass each, in one process, in turn: with the models' digests and without."""
    from safemerge.engine.scores import score_pairs
    from safemerge.storage.adapters import read_adapter

    tasks = [read_adapter(folder / f"task-{number}-{layers}").pairs for number in range(adapters)]
    models = inputs(folder, layers)[2:]
    best, results = best_of(
        repeats,
        {
            "one": lambda: score_pairs(tasks[:1], *models),
            "many": lambda: score_pairs(tasks, *models),
            "one_without_digests": lambda: score_pairs(tasks[:1], *models, digests=False),
            "many_without_digests": lambda: score_pairs(tasks, *models, digests=False),
        },
    )
    scores = results["many"][0]
    figures: Json = dict(best)
    figures["many"] |= {"adapters": adapters, "largest_error": _largest_error(tasks, scores, models)}
    return figures


def _largest_error(tasks: list[Any], scores: list[Any], models: tuple[Path, ...]) -> float:
    """Largest difference between cosines and the definition in float64, over a smallest matrix's adapters."""
    from safemerge.storage.checkpoints import Checkpoint

    module = min(tasks[0], key=lambda name: tasks[0][name].shape[0])
    aligned, unaligned = (
        Checkpoint.open(model).read_tensor(f"{module}.weight").to(torch.float64) for model in models
    )
    v = aligned - unaligned
    worst = 0.0
    for task, found in zip(tasks, scores, strict=True):
        delta = task[module].delta(torch.float64)
        projected = v @ (v.T @ delta)
        cosine = float((projected * delta).sum() / (projected.norm() * delta.norm()))
        worst = max(worst, abs(cosine - found[module].cosine))
    return worst


def run_sweep(folder: Path, _shape: Shape, _targets: str, layers: int, repeats: int) -> Json:
    """A sweep of one candidate and of fifty, of which one is written, in one process, in turn."""
    from safemerge.core.options import MergeOptions
    from safemerge.engine.sweeping import candidate_name, sweep_adapters

    output = folder / "swept"

    def sweep(count: int) -> None:
        options = [
            MergeOptions(quantile=(number // 5 + 1) / 11, task_weight=0.5 + 0.1 * (number % 5))
            for number in range(count)
        ]
        candidates = {candidate_name(option): option for option in options}
        shutil.rmtree(output, ignore_errors=True)
        sweep_adapters(
            *inputs(folder, layers), candidates=candidates, output=output, write=[next(iter(candidates))]
        )

    best, _ = best_of(repeats + 1, {"sweep_one": lambda: sweep(1), "sweep_fifty": lambda: sweep(CANDIDATES)})
    return best
