"""A model card, the adapter's ``README.md``: what it is, the verdict with its figures, and how to load it.

The head is YAML that the Hugging Face hub reads. It states no licence, which depends on the base model and
the data and is the owner's to add.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from safemerge.gate.rendering import escaped
from safemerge.release import words
from safemerge.release.markdown import arms_section, layer_lines
from safemerge.reports.release import ReleaseReport

MARK = "<!-- made by safemerge from a release report -->"
"""By which a card of ours is known: only such a one is replaced."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def card(report: ReleaseReport) -> str:
    """The model card of the candidate."""
    head = yaml.safe_dump(metadata(report), sort_keys=False, allow_unicode=False)
    return "\n".join(["---", head + "---", MARK, *_body(report), ""])


def metadata(report: ReleaseReport) -> dict[str, Any]:
    """What the hub reads: the base model and data sets where they are on the hub, the library, tags."""
    known = report.provenance
    found: dict[str, Any] = {}
    if base := _repository(known.models.get("aligned_model", "")):
        found["base_model"] = base
        found["base_model_relation"] = "adapter"
    found["library_name"] = "peft"
    found["pipeline_tag"] = "text-generation"
    found["tags"] = ["lora", "peft", "safety", "safemerge"]
    sources = (source for sources in known.datasets.values() for source in sources)
    if datasets := sorted({name for source in sources if (name := _repository(source))}):
        found["datasets"] = datasets
    return found


def _body(report: ReleaseReport) -> Iterator[str]:
    known, decision = report.provenance, report.decision
    yield f"# {escaped(known.name or report.candidate.title)}"
    yield ""
    yield from _what_it_is(report)
    yield "## Verdict"
    yield ""
    yield f"**{escaped(words.headline(report))}**, as measured on {escaped(known.created)}."
    yield ""
    yield f"Sign-off: {escaped(words.sign_off(report))}"
    yield ""
    for rule in words.missed(decision):
        yield f"- {escaped(rule.explanation)}"
    for warning in decision.warnings:
        yield f"- {escaped(warning)}"
    yield ""
    yield "## Figures"
    yield ""
    yield from arms_section(report)
    if report.merge:
        yield "## Merge"
        yield ""
        yield from layer_lines(report.merge)
        yield ""
    yield from _use_and_limits(report)
    yield "## How to load it"
    yield ""
    yield from _loading(report)
    yield "## Where it comes from"
    yield ""
    for name, digest in known.digests.items():
        yield f"- {escaped(name)}: sha256 {escaped(digest)}"
    for name, run in known.runs.items():
        yield f"- MLflow run of {escaped(name)}: {escaped(run)}"
    yield f"- safemerge {escaped(known.safemerge_version)}"


def _what_it_is(report: ReleaseReport) -> Iterator[str]:
    models = report.provenance.models
    on = f" for {escaped(models['aligned_model'])}" if "aligned_model" in models else ""
    made = "" if report.merge is None else ", made by merging a safety adapter into the layers that need it"
    yield f"A LoRA adapter{on}{made}."
    if report.merge is not None:
        yield (
            "Fine-tuning, even on harmless data, erodes the safety of a model; SafeMERGE (arXiv:2503.17239) "
            "repairs the layers whose updates left the directions of safety alignment."
        )
    yield ""


def _use_and_limits(report: ReleaseReport) -> Iterator[str]:
    suites = report.candidate.suites
    asked = ", ".join(f"{escaped(s.suite)} ({s.rate.n} prompts)" for s in suites if s.rate)
    judges = ", ".join(dict.fromkeys(f"{escaped(suite.judge.id)}" for suite in suites))
    yield "## Intended use and limits"
    yield ""
    if report.utility:
        yield f"- Made for the task that {escaped(report.utility.task)} measures."
    yield f"- The figures are of the suites {asked or 'named above'}, judged by {judges}, greedy decoding."
    yield "- They say nothing of other prompts, other languages, long conversations or sampling."
    if report.decision.smoke_judge:
        yield "- A smoke judge gave the flags: they show large drifts and are no basis for a release."
    yield "- A pass means this policy on these prompts; it does not make a model safe for every use."
    yield ""


def _loading(report: ReleaseReport) -> Iterator[str]:
    source = report.provenance.models.get("aligned_model", "")
    name, _, revision = source.partition("@")
    base = name if _repository(source) else "<base model>"
    pinned = f", revision={revision!r}" if _repository(source) and re.fullmatch(r"[\w.-]+", revision) else ""
    yield "```python"
    yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'tokenizer = AutoTokenizer.from_pretrained("{base}"{pinned})'
    yield f'model = AutoModelForCausalLM.from_pretrained("{base}"{pinned})'
    yield 'model = PeftModel.from_pretrained(model, "<this adapter>")'
    yield "```"
    yield ""


def _repository(source: str) -> str | None:
    """The hub's id in ``name@revision``; None where it is a path or something else."""
    name = source.partition("@")[0]
    return name if _REPOSITORY.fullmatch(name) else None
