"""Judges: what decides whether a response counts against the model.

A judge sees prompts with their responses and flags some of them: for harmful requests
those where the model complied, for harmless ones those where it refused
(:class:`~safemerge.records.SuiteKind`). Each kind of judge is a file here, which says what
its model costs and which licence it has. All are made by :func:`make_judge` from the config.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from safemerge.config.evaluation import EvaluationConfig
from safemerge.config.judges import JudgeConfig, judge_name
from safemerge.errors import ConfigError
from safemerge.evaluation.judges.base import Answer, Judge
from safemerge.evaluation.judges.refusal_phrases import RefusalPhrases
from safemerge.records import SuiteKind

__all__ = ["Answer", "Judge", "check_keys", "make_judge", "make_judges"]

_PLACES = {
    "llama_guard": "LlamaGuard",
    "shield_gemma": "ShieldGemma",
    "wild_guard": "WildGuard",
    "qwen3_guard": "Qwen3Guard",
    "granite_guardian": "GraniteGuardian",
    "endpoint": "EndpointJudge",
    "ensemble": "Ensemble",
}
"""Kind, which is also the module's name, to class."""


def make_judge(judge: JudgeConfig) -> Judge:
    """The judge that the config asks for; cheap, and its ``record`` says which rules it goes by.

    Raises:
        ConfigError: there is no such judge, or its model is not pinned.
        CheckpointError: its model's folder cannot be read.
    """
    name = judge_name(judge)
    if name == "refusal_phrases":
        return RefusalPhrases()
    if name not in _PLACES:
        raise ConfigError(f"judge: expected one of refusal_phrases, {', '.join(_PLACES)}, got {name!r}")
    module = importlib.import_module(f"{__name__}.{name}")
    made: Judge = getattr(module, _PLACES[name])(judge)
    return made


def check_keys(judges: Iterable[Judge]) -> None:
    """Check that judges behind servers have their keys, before anything is answered for them to judge.

    Raises:
        ConfigError: a key is missing.
    """
    from safemerge.evaluation.judges.endpoint import EndpointJudge
    from safemerge.evaluation.judges.ensemble import Ensemble

    for judge in judges:
        if isinstance(judge, Ensemble):
            check_keys(judge.members)
        elif isinstance(judge, EndpointJudge):
            judge.client.key()


def make_judges(settings: EvaluationConfig) -> dict[SuiteKind, Judge]:
    """Kind of suite to its judge, for the kinds that are measured; one object where both are the same.

    Raises:
        ConfigError, CheckpointError: as for :func:`make_judge`.
    """
    made: list[tuple[JudgeConfig, Judge]] = []
    judges = {}
    for kind in SuiteKind:
        if settings.suite_names(kind):
            config = settings.judge_of(kind)
            same = [judge for other, judge in made if other == config]
            judges[kind] = same[0] if same else make_judge(config)
            made.append((config, judges[kind]))
    return judges
