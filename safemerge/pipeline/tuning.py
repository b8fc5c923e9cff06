"""Choose the merge on the development split, as steps that a scheduler maps over candidates.

``propose`` writes every candidate, those of :mod:`safemerge.pipeline.learning` among them; in each round
``tune_evaluate`` measures one candidate and ``advance`` says who goes on; ``choose`` says who is merged. The
rounds are those of :mod:`safemerge.engine.race`, replayed from the reports that are handed in.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from safemerge.arms import ALIGNED, FINE_TUNED
from safemerge.described import Record
from safemerge.errors import ConfigError
from safemerge.pipeline.context import (
    StepContext,
    already_done,
    check_unchanged,
    local_adapter,
    local_file,
    tidy,
    without_run,
)
from safemerge.pipeline.dependencies import TUNING_TASK, choosing, inputs_digest, proposing
from safemerge.pipeline.evaluating import Measurement, measure
from safemerge.pipeline.learning import learned_folder
from safemerge.pipeline.models import local_model
from safemerge.pipeline.request import StepRequest
from safemerge.records import ArtifactRef, EvaluationReport, StepResult
from safemerge.tracking.ledger import PipelineRun

if TYPE_CHECKING:
    from safemerge.engine.race import Race, Reports, Stage
    from safemerge.engine.race_report import Entry

logger = logging.getLogger(__name__)

REFERENCES = (ALIGNED, FINE_TUNED)


class Proposal(Record):
    """The candidates of a pipeline run: what each is, and where it lies."""

    settings: dict[str, dict[str, Any]]
    """Candidate to its ``merge`` section."""
    layers: dict[str, int]
    """Candidate to the number of layers that it merges."""
    adapters: dict[str, ArtifactRef]
    """Candidate to its adapter."""
    digests: dict[str, str]
    """sha256 of both adapters and models."""
    warnings: tuple[str, ...] = ()
    coefficients: dict[str, ArtifactRef] = Field(default_factory=dict)
    """Candidate to its file of coefficients, for those that have one."""


def propose(context: StepContext, request: StepRequest) -> StepResult:
    """Score every layer once and write all candidates.

    Inputs:
        task_adapter, safety_adapter: the two adapters.
        coefficients: what ``learn`` learned, where the config has it learn; each file of it is a candidate.

    Outputs:
        proposal: what the candidates are and where they lie.
        <candidate>: the adapter of each.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    if run.config.tuning is None or run.plan.adapter is not None:
        why = "an adapter was given" if run.plan.adapter else "the run has no tuning"
        return without_run("propose", run, note=f"{why}: nothing is to be chosen")
    from safemerge.engine.coefficient_files import with_learned
    from safemerge.engine.sweeping import candidates, files_by_candidate

    task, safety = request.input("task_adapter"), request.input("safety_adapter")
    learns = run.config.tuning.learning is not None
    learned = learned_folder(context, request.input("coefficients")) if learns else None
    grid = with_learned(run.config.tuning.grid, learned)
    digest = inputs_digest(
        "propose",
        proposing(grid, run.plan),
        task_adapter=task.digest,
        safety_adapter=safety.digest,
    )
    if done := already_done(context, run, "propose", digest, "propose"):
        return done

    from safemerge.engine.merging import write_merge
    from safemerge.engine.scores import score_adapters
    from safemerge.engine.tuning import entry_of, merge_sections

    output = context.workspace.work("propose", digest) / "candidates"
    shutil.rmtree(output, ignore_errors=True)  # a killed attempt may have written it, but not stored it
    merges, files, sections = candidates(grid), files_by_candidate(grid), merge_sections(grid)
    with context.ledger.step_run(run, "propose", digest) as step_run:
        step_run.log_params(grid.model_dump(mode="json", exclude={"coefficients"}))
        scored = score_adapters(
            local_adapter(context, task),
            local_adapter(context, safety),
            local_model(context, run, "aligned_model"),
            local_model(context, run, "unaligned_model"),
            merges=list(merges.values()),
        )
        entries, adapters = {}, {}
        for name, options in merges.items():
            write_merge(scored, options, output / name)
            entries[name] = entry_of(sections[name], output / name)
            adapters[name] = step_run.log_folder(output / name, name, entries[name].digest)
        proposal = Proposal(
            settings={name: dict(entry.settings) for name, entry in entries.items()},
            layers={name: entry.layers for name, entry in entries.items()},
            adapters=adapters,
            digests=scored.digests,
            warnings=scored.warnings,
            coefficients={
                name: step_run.log_text(file.read_text(encoding="utf-8"), f"coefficients/{name}.json")
                for name, file in files.items()
            },
        )
        rows = [{"candidate": name, "layers": entry.layers} for name, entry in entries.items()]
        step_run.log_table(rows, "candidates.json")
        stored = step_run.log_text(proposal.to_json(), "proposal.json")
        result = step_run.finish({"proposal": stored, **adapters}, {"candidates": len(entries)})
    context.workspace.discard(output.parent)
    tidy(context, run)
    return result


def tune_evaluate(context: StepContext, request: StepRequest) -> StepResult:
    """Measure one candidate in one round: the prompts that the round adds, and utility where it scores any.

    Options:
        candidate: its name; ``aligned`` and ``fine_tuned`` in round 0, on all documents.
        round: the round's number.

    Inputs:
        adapter: the adapter; none for ``aligned``.

    Outputs:
        report: the figures as JSON.
    """
    from safemerge.engine.race import read_split, reference_settings, round_settings, scorings, tuning_of

    name, number = str(request.options["candidate"]), int(request.options["round"])
    run = context.ledger.pipeline_run(request.opened_run_id)
    tuning = tuning_of(run.config)
    split = read_split(tuning)
    for suite in split:
        what = f"tuning suite {suite.name}"
        check_unchanged(what, run.plan.data_digests[what], suite.digest())
    sizes = {suite.name: len(suite.prompts) for suite in split}
    scoring, settings = number, round_settings(run.config.evaluation, tuning, sizes, number)
    if name in REFERENCES:
        scoring, settings = max(scorings(tuning)), reference_settings(run.config.evaluation, tuning)
    task = run.plan.data_digests.get(f"{TUNING_TASK} {scoring}")
    asked = Measurement(settings, task, {}, "tune_evaluate")
    return measure(context, run, name, request.inputs.get("adapter"), asked, f"tune_{number}_{name}")


def advance(context: StepContext, request: StepRequest) -> StepResult:
    """Who is measured next.

    Options:
        round: the round that is to follow.

    Inputs:
        proposal: the candidates.
        <round>/<candidate>: every report so far.

    Outputs:
        <candidate>: the adapter of each that goes on, the best first; none where the race is over by then.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    proposal = Proposal.read(local_file(context, request.input("proposal")))
    race, reports, stage = _replay(context, run, request, proposal)
    number = int(request.options["round"])
    names = stage.names if stage.round == number else ()
    for name, ending in stage.fates.items():
        logger.info("%s: %s: %s", name, ending.fate, ending.reason)
    logger.info("round %d of %d: %s", number, race.last, ", ".join(names) or "nobody is left to be asked")
    return without_run(
        "advance",
        run,
        outputs={name: proposal.adapters[name] for name in names},
        round=number,
        candidates=len(names),
        measured=len(reports.candidates),
    )


def choose(context: StepContext, request: StepRequest) -> StepResult:
    """Say which merge is made, and keep why.

    Inputs:
        proposal: the candidates.
        <round>/<candidate>: every report.

    Outputs:
        choice: how the merge was chosen, as JSON.
        coefficients: the file of those that were chosen, if any were.

    Figures:
        chosen: the candidate; None where none keeps the limits, and ``summary`` says which each misses.
    """
    from safemerge.engine.race import tuning_of
    from safemerge.engine.race_report import choice_report
    from safemerge.plots.tune import COLUMNS, candidate_row

    run = context.ledger.pipeline_run(request.opened_run_id)
    digest = inputs_digest(
        "choose",
        choosing(tuning_of(run.config)),
        inputs={name: ref.digest for name, ref in request.inputs.items()},
    )
    if done := already_done(context, run, "choose", digest, "choose"):
        return done
    proposal = Proposal.read(local_file(context, request.input("proposal")))
    race, reports, stage = _replay(context, run, request, proposal)
    if stage.round is not None:
        raise ConfigError(
            f"step choose: expected a race that is over, got one that has yet to measure round {stage.round} "
            f"of {', '.join(stage.names)}"
        )
    report = choice_report(
        run.config, race, _entries(proposal), reports, stage, proposal.digests, warnings=proposal.warnings
    )
    output = context.workspace.work("choose", digest) / "choice"
    shutil.rmtree(output, ignore_errors=True)
    with context.ledger.step_run(run, "choose", digest) as step_run:
        from safemerge.engine.tuning import PAGE_FILE, REPORT_FILE, write_choice

        output.mkdir()
        write_choice(report, output)
        step_run.log_params(dict(report.settings))
        rows = [
            dict(zip((*COLUMNS, "why"), (*candidate_row(found), found.reason), strict=True))
            for found in report.candidates
        ]
        step_run.log_table(rows, "tune.json")
        step_run.log_file(output / PAGE_FILE)
        step_run.log_metrics({"prompts": report.cost.prompts, "prompts_in_full": report.cost.prompts_in_full})
        stored = step_run.log_text(report.to_json(), REPORT_FILE)
        reasons = "" if report.chosen else "".join(f"; {c.name}: {c.reason}" for c in report.candidates)
        figures = {"chosen": report.chosen, "summary": report.summary + reasons}
        outputs = {"choice": stored}
        if report.chosen in proposal.coefficients:
            outputs["coefficients"] = proposal.coefficients[report.chosen]
        result = step_run.finish(outputs, figures)
    context.workspace.discard(output.parent)
    return result


def _replay(
    context: StepContext, run: PipelineRun, request: StepRequest, proposal: Proposal
) -> tuple[Race, Reports, Stage]:
    from safemerge.engine.race import Race, Reports, read_split, tuning_of

    tuning = tuning_of(run.config)
    race = Race(tuning, proposal.layers, read_split(tuning))
    found: dict[tuple[int, str], EvaluationReport] = {}
    for key, ref in request.inputs.items():
        number, _, name = key.partition("/")
        if name:
            report = EvaluationReport.read(local_file(context, ref))
            if _is_of(report, name, proposal):
                found[int(number), name] = report.model_copy(update={"arm": name})
    aligned, fine_tuned = (_reference(found, name) for name in REFERENCES)
    candidates = {
        name: [report for (_, who), report in sorted(found.items()) if who == name]
        for name in proposal.layers
    }
    reports = Reports(aligned, fine_tuned, candidates)
    return race, reports, race.stage(reports)


def _is_of(report: EvaluationReport, name: str, proposal: Proposal) -> bool:
    """Whether a report is of what a name stands for: a run that was cleared hands in those of before, too."""
    if name in REFERENCES:
        return True
    adapter = proposal.adapters.get(name)
    return adapter is not None and report.adapter_digest == adapter.digest


def _reference(found: Mapping[tuple[int, str], EvaluationReport], name: str) -> EvaluationReport:
    if (0, name) not in found:
        raise ConfigError(f"step input '0/{name}': expected a report, got none")
    return found[0, name]


def _entries(proposal: Proposal) -> dict[str, Entry]:
    from safemerge.engine.race_report import Entry

    return {
        name: Entry(proposal.settings[name], proposal.layers[name], ref.digest)
        for name, ref in proposal.adapters.items()
    }
