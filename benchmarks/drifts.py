"""Two drifts and what repairs them: every arm on SmolLM2-135M.

Safety-tunes SmolLM2-135M-Instruct (that is the aligned model), fine-tunes it on GSM8K and on 100 harmless
how-to requests answered "Sure! Here is how to …", trains a safety adapter, and repairs both task adapters by
every method. Settings were narrowed down on the development split; where several are left, the one of least
harm is taken among those that keep 95 % of the gain there and refuse little more than the aligned model.
Figures come from the evaluation split, which no choice saw.

Harm is judged by refusal phrases: a smoke judge. What is compared is arms on the same prompts: greedy
decoding, the first 24 tokens of the answers. The aligned model is small and over-cautious, so look at what
each arm refuses, too. All that was made is kept in --work: interrupted, the same command goes on, and a
second run trains and evaluates nothing.

    python benchmarks/drifts.py --data ../shared/data --work var/drifts
    python benchmarks/drifts.py --data ../shared/data --work var/drifts --drift gsm8k
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from drift_data import METRIC, SPLITS, answer_physical, prepare_data, suites
from drift_figures import best_arm, choose, figures, meets_goal, summary, table
from drift_training import (
    CALIBRATED,
    DRIFTS,
    alignment_training,
    hardened_training,
    safety_training,
    task_training,
)
from measuring import Json, machine, save

from safemerge import export_adapter, learn_coefficients, sweep_adapters
from safemerge.arms import ALIGNED, FINE_TUNED
from safemerge.config.evaluation import EvaluationConfig, GenerationConfig, UtilityConfig
from safemerge.config.grid import SweepGrid
from safemerge.config.learning import LearningConfig
from safemerge.config.training import TrainingConfig
from safemerge.core.options import MergeOptions, MergeSettings
from safemerge.demo.models import unpack_model
from safemerge.engine.coefficient_files import read_coefficients
from safemerge.engine.merging import option_settings
from safemerge.engine.sweeping import ALL, candidates
from safemerge.evaluation.evaluating import Evaluation, evaluate_arms
from safemerge.evaluation.suites import read_suite
from safemerge.plots.page import page
from safemerge.plots.pareto import ArmPoint, pareto_figure
from safemerge.records import EvaluationReport, Interval, json_digest
from safemerge.storage.adapters import adapter_digest, read_adapter
from safemerge.storage.atomic import atomic_file
from safemerge.storage.checkpoints import Checkpoint
from safemerge.training.data import load_examples
from safemerge.training.sft import train_adapter

logger = logging.getLogger(__name__)


class Workshop:
    """The folder where models, adapters and evaluations are kept."""

    def __init__(self, work: Path, data: Path) -> None:
        self.work = work.resolve()
        self.data = self.work / "data"
        if not self.data.exists():
            prepare_data(data, self.data)
        self.aligned, self.unaligned = (self.work / "models" / name for name in ("aligned", "unaligned"))
        if not self.unaligned.exists():
            unpack_model(self.unaligned)
        answer_physical(self.unaligned, self.data)
        if not self.aligned.exists():
            tuned = self.adapter("alignment", alignment_training(self.data), model=self.unaligned)
            export_adapter(self.unaligned, tuned, output=self.aligned)
        self.model_digest = Checkpoint.open(self.aligned).files_digest()

    def adapter(self, name: str, training: TrainingConfig, model: Path | None = None) -> Path:
        """An adapter trained on a model, the aligned one by default; kept under the digest of both."""
        model = model or self.aligned
        examples = load_examples(training.data)
        settings = training.model_dump(mode="json", exclude={"data", "save_every_steps"})
        digest = json_digest(
            {"model": Checkpoint.open(model).files_digest(), "data": examples, "settings": settings}
        )
        output = self.work / "adapters" / f"{name}-{digest[:12]}"
        if not output.exists():
            train_adapter(model, examples, output, self.work / "checkpoints" / output.name, training)
        return output

    def drifted(self, task: Path) -> Path:
        """The aligned model with a task adapter folded in."""
        output = self.work / "models" / f"drifted-{task.name}"
        if not output.exists():
            export_adapter(self.aligned, task, output=output)
        return output

    def merges(self, task: Path, safety: Path, found: Mapping[str, MergeOptions]) -> dict[str, Path]:
        """Merges by name, all from one pass over the checkpoints."""
        of = [adapter_digest(task), adapter_digest(safety), self.model_digest]
        settings = {name: option_settings(options) for name, options in found.items()}
        output = self.work / "merges" / json_digest([of, settings])[:12]
        if not output.exists():
            sweep_adapters(
                task, safety, self.aligned, self.unaligned, candidates=found, output=output, write=ALL
            )
        return {name: output / name for name in found}

    def learned(self, task: Path, safety: Path, drift: str) -> dict[str, MergeOptions]:
        """Coefficients for every λ, fitted to training data alone, as merges by name."""
        learning = LEARNING.model_copy(update={"harm_weights": HARM_WEIGHTS[drift]})
        asked = [suite for split in SPLITS for suite in suites(self.data, split)]
        data = [task_training(drift, self.data).data, safety_training(self.data).data[:CALIBRATED]]
        of = [adapter_digest(task), adapter_digest(safety), self.model_digest, *map(load_examples, data)]
        digest = json_digest([of, learning.model_dump(mode="json"), START])
        output = self.work / "coefficients" / digest[:12]
        if not output.exists():
            learn_coefficients(
                task,
                safety,
                self.aligned,
                self.unaligned,
                task_data=data[0],
                safety_data=data[1],
                suites=asked,
                learning=learning,
                output=output,
                **START,
            )
        return {
            f"learned_{weight:g}": MergeOptions(
                coefficients=read_coefficients(output / f"coefficients_{weight:g}.json")
            )
            for weight in learning.harm_weights
        }

    def measure(self, arms: Mapping[str, Path | None], drift: str, split: str) -> dict[str, EvaluationReport]:
        """Measure arms; each kept under the digest of all that its figures depend on."""
        settings = self.evaluation(drift, split)
        shared = {
            "model": self.model_digest,
            "suites": [read_suite(suite).digest() for suite in settings.suites],
            "generation": settings.generation.max_new_tokens,
            "task": [settings.utility.task, settings.utility.limit],
        }
        digests = {name: adapter_digest(adapter) if adapter else None for name, adapter in arms.items()}
        files = {
            name: self.work / "evaluations" / f"{json_digest(shared | {'adapter': digest})[:16]}.json"
            for name, digest in digests.items()
        }
        if missing := {name: adapter for name, adapter in arms.items() if not files[name].exists()}:
            of = [drift, split, *(str(digests[name]) for name in missing)]
            unfinished = self.work / "unfinished" / json_digest(of)[:12]
            found = evaluate_arms(
                self.aligned,
                missing,
                settings,
                model_digest=self.model_digest,
                adapter_digests={name: digests[name] for name in missing},
                work=unfinished,
            )
            for name, evaluation in found.items():
                _keep(evaluation, files[name])
            shutil.rmtree(unfinished)
        return {
            name: EvaluationReport.read(file).model_copy(update={"arm": name}) for name, file in files.items()
        }

    def evaluation(self, drift: str, split: str) -> EvaluationConfig:
        """What is measured of every arm of a drift."""
        task = f"drift_{drift}_{split}"
        return EvaluationConfig(
            utility=UtilityConfig(
                task=task, metric=METRIC, include_path=str(self.data / "tasks"), batch_size=16
            ),
            suites=suites(self.data, split),
            generation=GenerationConfig(max_new_tokens=24, batch_size=64),
        )


def _keep(evaluation: Evaluation, file: Path) -> None:
    """Write the answers, then the report."""
    file.parent.mkdir(exist_ok=True)
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.rows)
    file.with_suffix(".jsonl").write_text(rows, encoding="utf-8")
    with atomic_file(file) as partial:
        partial.write_text(evaluation.report.to_json(), encoding="utf-8")


# --- which merges are tried ------------------------------------------------------------

HARDENED = "hardened"
"""RESTA with a safety adapter that was trained on the drifted model."""
GRIDS = {
    "gsm8k": {
        "scale": SweepGrid(methods=("scale",), weights=(0.8,)),
        "safelora": SweepGrid(methods=("safelora",), quantiles=(0.25,)),
        "resta": SweepGrid(methods=("resta",), weights=((1, 0.5),)),
        "safemerge": SweepGrid(quantiles=(0.5,), weights=((0.8, 0.4),)),
    },
    "howto": {
        "scale": SweepGrid(methods=("scale",), weights=(0.4,)),
        "safelora": SweepGrid(methods=("safelora",), quantiles=(0.25,)),
        "resta": SweepGrid(methods=("resta",), weights=((1, 1),)),
        "safemerge": SweepGrid(quantiles=(0.5, 1.0), weights=((0.6, 0.6),)),
        HARDENED: SweepGrid(methods=("resta",), weights=((1, 0.8), (1, 0.9), (1, 1))),
    },
}
"""Settings of each method; one alone leaves nothing to choose."""
HARM_WEIGHTS = {"gsm8k": (1.0,), "howto": (0.3, 1.0, 3.0)}
"""λ, the weight of safe answers beside the task's: more of it for the stronger drift."""
LEARNING = LearningConfig(
    steps=40,
    learning_rate=0.08,
    safety_examples=120,
    evaluate_every_steps=20,
    max_length_tokens=256,
    warm_start=True,
)
START: MergeSettings = {"quantile": 1.0, "task_weight": 0.7, "safety_weight": 0.6}
"""Where learning starts, and what it is pulled to."""
LABELS = {
    "aligned": "aligned model",
    "fine_tuned": "fine-tuned, unrepaired",
    "scale": "control: scaled",
    "safelora": "SafeLoRA",
    "resta": "RESTA",
    "safemerge": "SafeMERGE",
    "learned_0.3": "learned coefficients, λ = 0.3",
    "learned_1": "learned coefficients, λ = 1",
    "learned_3": "learned coefficients, λ = 3",
    HARDENED: "RESTA, trained on the drift",
}


def measure_drift(shop: Workshop, drift: str) -> Json:
    """Train, try, choose and measure; the figures of one drift."""
    task = shop.adapter(drift, task_training(drift, shop.data))
    safety = shop.adapter("safety", safety_training(shop.data))
    arms: dict[str, Path | None] = {ALIGNED: None, FINE_TUNED: task}
    tried = {method: candidates(grid) for method, grid in GRIDS[drift].items()}
    # λ is a dial that a person turns: every λ is an arm.
    learned = shop.learned(task, safety, drift)
    tried |= {name: {name: options} for name, options in learned.items()}
    partners = dict.fromkeys(tried, safety)
    if HARDENED in tried:
        training = hardened_training(drift, shop.data)
        partners[HARDENED] = shop.adapter(f"hardened-{drift}", training, model=shop.drifted(task))
    merges = {method: shop.merges(task, partners[method], options) for method, options in tried.items()}
    several = {
        name: adapter for found in merges.values() if len(found) > 1 for name, adapter in found.items()
    }
    dev = shop.measure(arms | several, drift, "dev") if several else {}
    for name in several:
        logger.info("%s, dev: %s", drift, summary(name, dev))
    chosen = {
        method: choose(list(found), dev) if len(found) > 1 else next(iter(found))
        for method, found in merges.items()
    }
    arms |= {method: merges[method][name] for method, name in chosen.items()}
    final = figures(shop.measure(arms, drift, "eval"))
    return {
        "norms": {"task": adapter_norm(task), "safety": adapter_norm(safety)}
        | ({HARDENED: adapter_norm(partners[HARDENED])} if HARDENED in partners else {}),
        "chosen": chosen,
        "dev": figures(dev) if dev else {},
        "eval": final,
        "goal": {name: meets_goal(final[name]) for name in chosen},
    }


def adapter_norm(adapter: Path) -> float:
    """Frobenius norm of all updates of an adapter together."""
    return math.hypot(*(pair.norm() for pair in read_adapter(adapter).pairs.values()))


def write_page(drifts: Mapping[str, Json], file: Path) -> None:
    """The Pareto pictures of all drifts on one page."""
    pictures = []
    for result in drifts.values():
        best = best_arm(result["eval"])
        pictures.append(
            pareto_figure(
                [
                    ArmPoint(
                        LABELS[name],
                        arm["utility"],
                        arm["harmful"]["value"],
                        harmful_interval=Interval(low=arm["harmful"]["low"], high=arm["harmful"]["high"]),
                        chosen=name == best,
                    )
                    for name, arm in result["eval"].items()
                ],
                utility="log-probability a token of held-out answers",
            )
        )
    details = "Above: " + ", below: ".join(drifts) + ". Evaluation split, refusal phrases (a smoke judge)."
    with atomic_file(file, replace=True) as partial:
        partial.write_text(page("two drifts and what repairs them", details, pictures), encoding="utf-8")


def main() -> None:
    """Measure, print and keep as JSON."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    before = machine()
    shop = Workshop(options.work, options.data)
    drifts = {drift: measure_drift(shop, drift) for drift in options.drift or DRIFTS}
    for drift, result in drifts.items():
        print(f"\n{drift}\n\n{table(result['eval'], LABELS)}")
    save("drifts", {"machine": before, "judge": "refusal_phrases (smoke judge)", "drifts": drifts})
    write_page(drifts, shop.work / "drifts.html")
    print(f"\npicture: {shop.work / 'drifts.html'}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the public data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made; 3 GB")
    parser.add_argument("--drift", choices=DRIFTS, action="append", help="one of the drifts (default: both)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
