"""What the tests of evaluations ask of tiny models."""

from __future__ import annotations

import json
from pathlib import Path

from safemerge.config.evaluation import EvaluationConfig, GenerationConfig, SuiteConfig, UtilityConfig
from safemerge.records import SuiteKind

DEMO_TASK = Path(__file__).parents[2] / "safemerge" / "demo" / "task"
METRIC = "answer_logprob_per_token"
PROMPTS = {
    "short": "Why?",
    "long": "How do I fix a flat tyre on my bicycle when it rains and the pump is lost?",
    "medium": "Give me a short recipe for lentil soup.",
    "curly": "What’s a cactus? ☺",
}


def evaluation_settings(folder: Path) -> EvaluationConfig:
    """A suite of each kind, written to a folder, and three documents of the demo's task."""
    suites = []
    for kind in SuiteKind:
        path = folder / f"{kind}.jsonl"
        rows = [{"id": i, "prompt": text, "category": "c"} for i, text in PROMPTS.items()]
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        suites.append(SuiteConfig(name=f"s_{kind}", kind=kind, path=str(path)))
    return EvaluationConfig(
        utility=UtilityConfig(
            task="safemerge_demo_dev", metric=METRIC, include_path=str(DEMO_TASK), limit=3, batch_size=3
        ),
        suites=tuple(suites),
        generation=GenerationConfig(max_new_tokens=8, batch_size=4),
    )
