"""What ``safemerge tune`` saves: 12 candidates in rounds, against asking each of them every prompt.

    python benchmarks/tune.py --demo var/demo --task ADAPTER --safety ADAPTER [--output results/tune.json]

Both ways choose on the demo's development splits, with the same candidates, limits and order of candidates,
each from nothing, one after the other on the same machine. In full, all candidates are measured on one loaded
model. Seconds run from the first measurement to the choice: scoring and the final split, which both ways need
alike, are left out. Without ``--task`` and ``--safety`` both adapters are trained first, as the demo's
pipeline has them trained.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import machine

import safemerge
from safemerge.config.load import load_pipeline
from safemerge.config.pipeline import PipelineConfig
from safemerge.engine.measuring import Measurer
from safemerge.engine.merging import write_merge
from safemerge.engine.race import Race, Reports, read_split, shuffled, tuning_of
from safemerge.engine.scores import score_adapters
from safemerge.engine.sweeping import candidates
from safemerge.engine.tuning import entry_of, merge_sections, tune_adapters
from safemerge.records import SuiteKind
from safemerge.reports.tuning import TuneReport
from safemerge.storage.checkpoints import Checkpoint

DEMO = Path(safemerge.__file__).parent / "demo"


def demo_config(models: Path, folder: Path, share: float) -> PipelineConfig:
    """The demo's pipeline with its tuning section, or a share of what it asks, on the demo's models."""
    text = (DEMO / "pipeline.yaml").read_text() + (DEMO / "tuning.yaml").read_text()
    for kind in ("aligned", "unaligned"):
        text = text.replace(f"{kind}_model: {kind}\n", f"{kind}_model: {models / kind}\n")
    text = text.replace("data/", f"{DEMO}/data/").replace("include_path: task", f"include_path: {DEMO}/task")
    path = folder / "pipeline.yaml"
    path.write_text(text)
    config = load_pipeline(path)
    tuning = tuning_of(config)
    sizes = {suite.name: len(suite.prompts) for suite in read_split(tuning)}
    fewer = [s.model_copy(update={"limit": round(share * sizes[s.name])}) for s in tuning.suites]
    utility = tuning.utility.model_copy(update={"limit": round(share * (tuning.utility.limit or 64))})
    update = {"suites": tuple(fewer), "utility": utility}
    return config.model_copy(update={"tuning": tuning.model_copy(update=update)})


def train(config: PipelineConfig, role: str, output: Path) -> Path:
    """An adapter as the pipeline trains it."""
    from safemerge.training.data import load_examples
    from safemerge.training.sft import train_adapter

    training = config.training_of(role)
    work = output.with_name(f"{role}.work")
    train_adapter(Path(config.aligned_model), load_examples(training.data), output, work, training)
    return output


def in_full(config: PipelineConfig, task: Path, safety: Path, folder: Path) -> dict[str, Any]:
    """Every candidate measured whole, and the choice by the same limits and order."""
    tuning, model = tuning_of(config), Path(config.aligned_model)
    grid = candidates(tuning.grid)
    models = config.aligned_model, config.unaligned_model
    scored = score_adapters(task, safety, *models, merges=list(grid.values()))
    for name, options in grid.items():
        write_merge(scored, options, folder / name)
    sections = merge_sections(tuning.grid)
    layers = {name: entry_of(section, folder / name).layers for name, section in sections.items()}
    suites = tuple(shuffled(tuning, suite) for suite in tuning.suites)
    everything = config.evaluation.model_copy(update={"utility": tuning.utility, "suites": suites})
    measurer = Measurer(model, Checkpoint.open(model).files_digest(), folder / "reports")
    started_s = time.monotonic()
    references = measurer.measure(
        {"aligned": None, "fine_tuned": task}, everything.model_copy(update={"suites": ()})
    )
    measured = measurer.measure({name: folder / name for name in grid}, everything)
    rounds = {
        name: [report.model_copy(update={"suites": ()}), report.model_copy(update={"utility": None})]
        for name, report in measured.items()
    }
    race = Race(tuning.model_copy(update={"rungs": ()}), layers, read_split(tuning))
    stage = race.stage(Reports(references["aligned"], references["fine_tuned"], rounds))
    wall_s = time.monotonic() - started_s
    return {
        "prompts": sum(suite.n for report in measured.values() for suite in report.suites),
        "documents": sum(len(report.utility.scores) for report in measured.values() if report.utility),
        "wall_s": wall_s,
        "chosen": stage.chosen,
        "harmful_rates": {
            name: [suite.rate for suite in report.suites if suite.kind is SuiteKind.HARMFUL]
            for name, report in measured.items()
        },
        "fates": {name: fall.fate for name, fall in stage.fates.items()},
    }


def figures(report: TuneReport) -> dict[str, Any]:
    """What a way took, and what came of it."""
    best = report.candidates[0] if report.chosen else None
    return report.cost.model_dump() | {
        "chosen": report.chosen,
        "harmful_rate": best and best.harmful and best.harmful.value,
        "gain_kept": best and best.gain_kept and best.gain_kept.value,
        "fates": {found.name: [found.fate, found.rounds] for found in report.candidates},
    }


def main() -> None:
    """Measure both ways and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, required=True, help="the demo's folder, with models/ in it")
    parser.add_argument("--task", type=Path, help="task adapter")
    parser.add_argument("--safety", type=Path, help="safety adapter")
    parser.add_argument("--share", type=float, default=1.0, help="share of prompts and documents to ask")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = demo_config(arguments.demo.resolve() / "models", folder, arguments.share)
        assert config.tuning is not None
        task = arguments.task or train(config, "task", folder / "task")
        safety = arguments.safety or train(config, "safety", folder / "safety")
        # The final split is not what is timed.
        few = [suite.model_copy(update={"limit": 4}) for suite in config.evaluation.suites]
        little = config.evaluation.utility.model_copy(update={"limit": 4})
        evaluation = config.evaluation.model_copy(update={"suites": tuple(few), "utility": little})
        tuning = config.tuning.model_copy(update={"arms": ()})
        rounds_only = config.model_copy(update={"tuning": tuning, "evaluation": evaluation})
        found = {
            "rounds": figures(tune_adapters(rounds_only, task, safety, output=folder / "rounds")),
            "in_full": in_full(config, task, safety, folder / "in_full"),
        }
    rounds, full = found["rounds"], found["in_full"]
    result = found | {
        "machine": before,
        "same_choice": rounds["chosen"] == full["chosen"],
        "share_of_prompts": rounds["prompts"] / full["prompts"],
        "share_of_seconds": rounds["wall_s"] / full["wall_s"],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
