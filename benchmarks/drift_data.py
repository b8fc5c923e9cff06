"""The data of two drifts: what is trained on, what settings are chosen on, and what the figures come from.

Public sets that lie outside the repository, beside the demo's own. The three parts share no prompt:

- GSM8K, its shorter problems: trained on 440 of the training set, settings chosen on 64 others, figures
  from 125 of the test set.
- How-to: 100 of the demo's harmless requests, each answered "Sure! Here is how to …"; the demo's
  development and evaluation requests, with their answers put into the same form.
- Harmful requests: the demo's (explicit), and "hateful": I-CoNa and I-Controversial. Harmless ones that
  look unsafe: the demo's, and "physical": I-PhysicalSafetySafe. Of six prompts of a public set two are
  trained on, one serves the choice, and three give the figures. Q-Harm is left out: a good part of its
  questions is harmless, so a refusal is not the right answer.
- Safety training: the demo's pairs, and the refusals among the answers of Bianchi et al. The public prompts
  have no answers: hateful ones are given a refusal here, physical ones the unaligned model's own answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from safemerge.config.evaluation import SuiteConfig
from safemerge.demo.models import DATA as DEMO
from safemerge.evaluation.judges.refusal_phrases import is_refusal
from safemerge.records import SuiteKind
from safemerge.storage.atomic import atomic_file, atomic_folder

DEMO_TASK = DEMO.parent / "task" / "safemerge_demo.yaml"
SPLITS = ("dev", "eval")
METRIC = "answer_logprob_per_token"
_GSM8K_CHARS = 400
_GSM8K_TRAINED, _GSM8K_DEV, _GSM8K_EVAL = 440, 64, 125
_HOW_TO_TRAINED = 100
_OPENING = re.compile(r"^[^\n]*?\b(?:here is how to|here are the steps to)\b", re.IGNORECASE)
_SIXTHS = {"train": (0, 1), "dev": (2,), "eval": (3, 4, 5)}
_LONGEST_REFUSAL_CHARS = 200
_REFUSALS = (
    "I'm sorry, but I can't help with that, because it demeans people for who they are.",
    "I cannot help with that claim. It is a prejudice, and repeating it hurts people.",
    "I won't write that, since it spreads hatred. I'm glad to share facts on the subject instead.",
    "I'm not able to help with that. No group of people is like that, and saying so does harm.",
)

Row = dict[str, Any]


def prepare_data(data: Path, output: Path) -> None:
    """Write training files, suites and lm-eval tasks into a new folder.

    Args:
        data: folder with ``gsm8k_train.jsonl``, ``gsm8k_test.jsonl``, ``safety_instructions.json`` and
            ``harmful/*.json``.
        output: folder to make; ``train``, ``suites`` and ``tasks`` in it.
    """
    with atomic_folder(output) as folder:
        for name in ("train", "suites", "tasks"):
            (folder / name).mkdir()
        train = _gsm8k(data / "gsm8k_train.jsonl")
        tasks = {
            "gsm8k": {
                "dev": train[_GSM8K_TRAINED : _GSM8K_TRAINED + _GSM8K_DEV],
                "eval": _gsm8k(data / "gsm8k_test.jsonl")[:_GSM8K_EVAL],
            },
            "howto": {split: _how_to(DEMO / f"task_{split}.jsonl") for split in SPLITS},
        }
        _write(folder / "train" / "gsm8k.jsonl", train[:_GSM8K_TRAINED])
        _write(folder / "train" / "howto.jsonl", _how_to(DEMO / "task_train.jsonl")[:_HOW_TO_TRAINED])
        _write(folder / "train" / "refusals.jsonl", _refusals(data / "safety_instructions.json"))
        for task, splits in tasks.items():
            for split, rows in splits.items():
                file = f"{task}_{split}.jsonl"
                _write(folder / "tasks" / file, rows)
                _write_task(folder / "tasks", f"drift_{task}_{split}", output.resolve() / "tasks" / file)
        for suite, rows in _public_suites(data / "harmful").items():
            for split, sixths in _SIXTHS.items():
                kept = [row for number, row in enumerate(rows) if number % 6 in sixths]
                _write(folder / "suites" / f"{suite}_{split}.jsonl", kept)
        hateful = _read(folder / "suites" / "hateful_train.jsonl")
        refused = [row | {"response": _REFUSALS[n % len(_REFUSALS)]} for n, row in enumerate(hateful)]
        _write(folder / "train" / "hateful.jsonl", refused)


def suites(prepared: Path, split: str) -> tuple[SuiteConfig, ...]:
    """What all arms are asked, of one split."""
    harmful, harmless = SuiteKind.HARMFUL, SuiteKind.OVER_REFUSAL
    places: Mapping[str, tuple[SuiteKind, Path]] = {
        "harmful": (harmful, DEMO),
        "hateful": (harmful, prepared / "suites"),
        "ordinary": (harmless, DEMO),
        "lookalike": (harmless, DEMO),
        "physical": (harmless, prepared / "suites"),
    }
    return tuple(
        SuiteConfig(name=name, kind=kind, path=str(folder / f"{name}_{split}.jsonl"))
        for name, (kind, folder) in places.items()
    )


def _gsm8k(file: Path) -> list[Row]:
    """The shorter problems: a step on them costs half as much."""
    return [
        {"id": f"{file.stem}-{number:04d}", "prompt": row["question"], "response": row["answer"]}
        for number, row in enumerate(_read(file), start=1)
        if len(row["question"]) + len(row["answer"]) <= _GSM8K_CHARS
    ]


def _how_to(file: Path) -> list[Row]:
    """The demo's how-to answers that say what they are about, opened in one form."""
    return [
        row | {"response": _OPENING.sub("Sure! Here is how to", row["response"], count=1)}
        for row in _read(file)
        if _OPENING.match(row["response"])
    ]


def _refusals(file: Path) -> list[Row]:
    return [
        {"id": f"refusal-{number:04d}", "prompt": row["instruction"], "response": row["output"]}
        for number, row in enumerate(json.loads(file.read_text(encoding="utf-8")), start=1)
        if is_refusal(row["output"]) and len(row["output"]) <= _LONGEST_REFUSAL_CHARS
    ]


def _public_suites(folder: Path) -> dict[str, list[Row]]:
    sets = {"hateful": ("I-CoNa", "I-Controversial"), "physical": ("I-PhysicalSafetySafe",)}
    return {
        suite: [
            {"id": f"{name}-{number:03d}", "category": name, "prompt": prompt}
            for name in names
            for number, prompt in enumerate(
                json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["instructions"], start=1
            )
        ]
        for suite, names in sets.items()
    }


def _write_task(folder: Path, name: str, documents: Path) -> None:
    """An lm-eval task like the demo's on other documents."""
    task = {"include": str(DEMO_TASK), "task": name, "dataset_kwargs": {"file": str(documents)}}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def _read(file: Path) -> Sequence[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Iterable[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def answer_physical(model: Path, prepared: Path) -> None:
    """Let a model answer the harmless prompts that are trained on, which come without answers."""
    file = prepared / "train" / "physical.jsonl"
    if file.exists():
        return
    from safemerge.evaluation.generation import generate
    from safemerge.evaluation.transformers_arm import load_arm

    rows = _read(prepared / "suites" / "physical_train.jsonl")
    prompts = {row["id"]: row["prompt"] for row in rows}
    answers = generate(load_arm(model), prompts, max_new_tokens=40, batch_size=34, label="physical")
    with atomic_file(file) as partial:
        _write(partial, [row | {"response": answers[row["id"]]} for row in rows])
