"""Answering harmful prompts with several arms: safemerge beside lm-eval's ``hf`` model, in one run.

Every arm (the model alone, and each adapter on it) answers the same prompts greedily. safemerge loads
the model once and drops rows that have ended; lm-eval loads model and adapter for each arm, as its command
line does (``--model hf --model_args pretrained=…,peft=…``), and answers at every batch size asked for.
Both compute in fp32 on a CPU. Loading is timed apart: what is compared is answering alone. The answers
must be the same but for ties that batches of other sizes round otherwise; the share that is the same is told.

The inputs are the demo's: run ``make demo`` first, or name a model, adapters and prompts.

    python benchmarks/generation.py
    python benchmarks/generation.py --prompts 24 --batch-sizes 8 32       # a quick look
    python benchmarks/generation.py --model M --adapters a=./a b=./b --suite prompts.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from measuring import ROOT, Json, machine, save, timed

from safemerge.arms import ALIGNED

DATA = ROOT / "safemerge" / "demo" / "data"
SUITES = [
    DATA / f"{kind}_{split}.jsonl"
    for kind in ("harmful", "lookalike", "ordinary")
    for split in ("eval", "dev")
]
GOALS = {"speedup over lm-eval at batch size 8": 2.0, "speedup over the best of lm-eval": 1.0}


def main() -> None:
    """Measure, print and keep as JSON."""
    options = _options()
    prompts = _prompts(options.suite, options.prompts)
    arms = _arms(options)
    before = machine()
    figures: Json = {}
    answers: Json = {}
    figures["safemerge"], answers["safemerge"] = _ours(options, arms, prompts)
    _tell("safemerge", figures["safemerge"])
    for size in options.batch_sizes:
        way = f"lm-eval, batch size {size}"
        figures[way], answers[way] = _lm_eval(options, arms, prompts, size)
        _tell(way, figures[way])
    result = {
        "model": options.model.name,
        "arms": list(arms),
        "prompts": len(prompts),
        "max_new_tokens": options.new_tokens,
        "batch_size": options.batch_size,
        "machine": before | {"load_after": os.getloadavg()[0]},
        "figures": figures,
        "same_answers": {way: _same(answers["safemerge"], of) for way, of in answers.items()},
        "ratios": _ratios(figures),
    }
    result["goals_met"] = {name: result["ratios"][name] >= goal for name, goal in GOALS.items()
                           if name in result["ratios"]}  # fmt: skip
    _print(result)
    print(f"kept in {save(options.name, result)}")


def _options() -> argparse.Namespace:
    from safemerge.config.evaluation import GenerationConfig

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = ROOT / "var" / "demo"
    default = GenerationConfig().batch_size
    parser.add_argument("--model", type=Path, default=demo / "models" / "aligned")
    parser.add_argument("--adapters", nargs="*", metavar="NAME=FOLDER", help="default: three of the demo's")
    parser.add_argument("--suite", type=Path, nargs="+", default=SUITES, help="JSON Lines files with prompts")
    parser.add_argument("--prompts", type=int, default=200, help="distinct prompts (default 200)")
    parser.add_argument("--new-tokens", type=int, default=64, help="length of an answer (default 64)")
    parser.add_argument("--batch-size", type=int, default=default, help=f"safemerge's (default {default})")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 16, 32], help="lm-eval's")
    parser.add_argument("--name", default="generation", help="of the result's file (default generation)")
    return parser.parse_args()


def _prompts(suites: list[Path], count: int) -> dict[str, str]:
    """As many of every suite as there are, taken in turn, until there are enough."""
    files = [
        [json.loads(line)["prompt"] for line in s.read_text(encoding="utf-8").splitlines()] for s in suites
    ]
    longest = max(map(len, files))
    turns = [prompts[turn] for turn in range(longest) for prompts in files if turn < len(prompts)]
    distinct = list(dict.fromkeys(turns))[:count]
    if len(distinct) < count:
        sys.exit(f"expected {count} distinct prompts in {len(suites)} files, got {len(distinct)}")
    return {f"p{number}": text for number, text in enumerate(distinct)}


def _arms(options: argparse.Namespace) -> dict[str, Path | None]:
    if options.adapters is not None:
        named = dict(text.split("=", 1) for text in options.adapters)
        return {ALIGNED: None} | {name: Path(folder) for name, folder in named.items()}
    found = sorted(path.parent for path in options.model.parents[1].glob("adapters/*/adapter_config.json"))
    if not found:
        sys.exit(
            f"expected adapters in {options.model.parents[1] / 'adapters'}, got none; make demo writes them"
        )
    return {ALIGNED: None} | {folder.name: folder for folder in found[:3]}


def _ours(
    options: argparse.Namespace, arms: dict[str, Path | None], prompts: dict[str, str]
) -> tuple[Json, Json]:
    from safemerge.evaluation.generation import generate
    from safemerge.evaluation.transformers_arm import TransformersModel

    loading, model = timed(lambda: TransformersModel.load(options.model, arms))
    spent, answers = [], {}
    for name in arms:
        with model.arm(name) as arm:
            took, answers[name] = timed(
                partial(
                    generate,
                    arm,
                    prompts,
                    max_new_tokens=options.new_tokens,
                    batch_size=options.batch_size,
                    label=name,
                )
            )
        spent.append(took)
    return _figures(spent, [loading], prompts, arms), answers


def _lm_eval(
    options: argparse.Namespace, arms: dict[str, Path | None], prompts: dict[str, str], size: int
) -> tuple[Json, Json]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    loadings, spent, answers = [], [], {}
    for name, adapter in arms.items():
        peft = {} if adapter is None else {"peft": str(adapter)}
        loading, lm = timed(
            partial(
                HFLM, pretrained=str(options.model), batch_size=size, device="cpu", dtype="float32", **peft
            )
        )
        wish = {"until": [], "do_sample": False, "max_gen_toks": options.new_tokens}
        requests = [
            Instance("generate_until", {}, (_chat(lm, text), wish), number)
            for number, text in enumerate(prompts.values())
        ]
        took, texts = timed(partial(lm.generate_until, requests, disable_tqdm=True))
        answers[name] = dict(zip(prompts, texts, strict=True))
        loadings.append(loading)
        spent.append(took)
    return _figures(spent, loadings, prompts, arms), answers


def _chat(lm: Any, text: str) -> str:
    return str(lm.apply_chat_template([{"role": "user", "content": text}]))


def _figures(spent: list[Json], loadings: list[Json], prompts: Json, arms: Json) -> Json:
    seconds = sum(took["work_s"] for took in spent)
    return {
        "work_s": seconds,
        "cpu_s": sum(took["cpu_s"] for took in spent),
        "by_arm_s": dict(zip(arms, (took["work_s"] for took in spent), strict=True)),
        "load_s": sum(took["work_s"] for took in loadings),
        "answers_per_s": len(arms) * len(prompts) / seconds,
    }


def _same(ours: Json, theirs: Json) -> float:
    """Share of answers that are the same, apart from white space at the ends, which lm-eval may take off."""
    same = [text.strip() == theirs[name][i].strip() for name, of in ours.items() for i, text in of.items()]
    return same.count(True) / len(same)


def _ratios(figures: Json) -> dict[str, float]:
    ours = figures["safemerge"]["work_s"]
    theirs = {way: of["work_s"] for way, of in figures.items() if way != "safemerge"}
    found = {f"speedup over {way.replace(',', ' at')}": took / ours for way, took in theirs.items()}
    return found | ({"speedup over the best of lm-eval": min(theirs.values()) / ours} if theirs else {})


def _tell(way: str, of: Json) -> None:
    print(f"{way}: {of['work_s']:.1f} s, {of['answers_per_s']:.2f} answers a second", file=sys.stderr)


def _print(result: Json) -> None:
    print(
        f"{len(result['arms'])} arms, {result['prompts']} prompts, {result['max_new_tokens']} new tokens, "
        f"safemerge at batch size {result['batch_size']}"
    )
    print(f"{'':<26}{'answering, s':>14}{'cpu, s':>10}{'loading, s':>12}{'answers/s':>11}{'same':>8}")
    for way, of in result["figures"].items():
        print(
            f"{way:<26}{of['work_s']:>14.1f}{of['cpu_s']:>10.1f}{of['load_s']:>12.1f}"
            f"{of['answers_per_s']:>11.2f}{result['same_answers'][way]:>8.1%}"
        )
    for name, value in result["ratios"].items():
        goal = (
            f"  (at least {GOALS[name]:g}: {'met' if value >= GOALS[name] else 'MISSED'})"
            if name in GOALS
            else ""
        )
        print(f"{name}: {value:.2f}{goal}")
    machine_ = result["machine"]
    print(
        f"machine: {machine_['cores']} cores, load {machine_['load_before']:.1f} before and "
        f"{machine_['load_after']:.1f} after"
    )


if __name__ == "__main__":
    main()
