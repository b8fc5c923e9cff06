"""Shipped suites as lm-eval tasks: documents, and our judge in place of a metric.

``lm_eval --include_path <this folder> --tasks safemerge_directharm4``, with ``--metadata`` for
what the task leaves open: ``revision`` of the suite's data set, and ``judge``, written as in a
pipeline's YAML file. A guard model is loaded with the first answer, beside the judged model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from safemerge.config.load import load_suite_spec
from safemerge.config.places import with_places_from
from safemerge.config.suites import shipped_suite
from safemerge.evaluation.suites import PLAIN_CHAT, Prompt, load_described
from safemerge.records import SuiteKind


def read(suite: str, revision: str | None = None, judge: Any = "refusal_phrases", **_: Any) -> Any:
    """The documents of a suite.

    Args:
        suite: name of a shipped one, or path of a YAML file that describes one.
        revision: commit, tag or branch of its hub data set.
        judge: what flags the answers, as in a pipeline's YAML file; paths count from the working directory.

    Returns:
        A ``DatasetDict`` with the split ``test``: id, prompt, category, kind, and the judge as JSON.

    Raises:
        ValueError: the suite asks in a form of chat that a task cannot ask in.
    """
    from datasets import Dataset, DatasetDict

    spec = load_suite_spec(Path(suite)) if suite.endswith((".yaml", ".yml")) else shipped_suite(suite)
    read = load_described(spec, revision)
    if read.chat != PLAIN_CHAT:
        raise ValueError(
            f"suite {suite}: expected no system prompt or template of its own; give them to lm-eval instead"
        )
    common = {"kind": spec.kind.value, "judge": json.dumps(judge)}
    rows = [{"id": p.id, "prompt": p.text, "category": p.category or "", **common} for p in read.prompts]
    return DatasetDict({"test": Dataset.from_list(rows)})


def judge(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the answer counts against the model, 0 elsewhere, under the name of the suite's rate."""
    from safemerge.evaluation.judges import Answer

    kind = SuiteKind(document["kind"])
    prompt = Prompt(document["id"], document["prompt"], document["category"] or None)
    flags = _judge(document["judge"]).flags(kind, [Answer(prompt, results[0])])
    return {f"{kind}_rate": float(flags[prompt.id])}


@lru_cache(maxsize=1)
def _judge(settings: str) -> Any:
    """The judge of all documents, made once."""
    from pydantic import TypeAdapter

    from safemerge.config.judges import JudgeConfig
    from safemerge.evaluation.judges import make_judge

    found = with_places_from(JudgeConfig, json.loads(settings), Path.cwd())
    return make_judge(TypeAdapter(JudgeConfig).validate_python(found))
