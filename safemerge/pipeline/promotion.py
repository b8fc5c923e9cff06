"""Make an adapter that passed the gate, or that a person let through, the champion."""

from __future__ import annotations

import logging

from safemerge.errors import MismatchError
from safemerge.pipeline.context import StepContext, local_adapter, local_file, without_run
from safemerge.pipeline.dependencies import inputs_digest, promoting
from safemerge.pipeline.reporting import model_card
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.signing import overtaken, record_answer, why_not
from safemerge.records import Approval, ArtifactRef, GateDecision, StepResult
from safemerge.tracking import tags
from safemerge.tracking.champions import ALIAS
from safemerge.tracking.history import How
from safemerge.tracking.ledger import PipelineRun

logger = logging.getLogger(__name__)


def promote(context: StepContext, request: StepRequest) -> StepResult:
    """Register the adapter as a new model version and move the alias ``champion`` to it.

    Not skipped because another run did the same before: another adapter may have become the champion since.
    Not done where a later run has released one: a run that was slow, or was started again, does not undo
    that. Nor where a person has taken this very adapter back.

    Inputs:
        adapter: the candidate that the gate judged.
        decision: the gate's verdict; read here again, so that no scheduler can promote
            what did not pass.

    Options:
        answer: what a person said, where the gate wants one to decide: an :class:`Approval`.

    Outputs:
        model_version: ``models:/<name>/<version>``; none where nothing was promoted: a figure ``note`` says
            why there was nothing to do, ``refused`` why a person's answer does not let the adapter through.

    Raises:
        MismatchError: the verdict is a block, is about another adapter, or compares it with a
            champion that another has replaced since; a person must decide, and none was heard about this
            very decision; or a later run released an adapter at the same moment.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    adapter, decision_ref = request.input("adapter"), request.input("decision")
    decision = GateDecision.read(local_file(context, decision_ref))
    may_ship = decision.passed or (decision.wants_person and run.plan.promote)
    if not may_ship or decision.adapter_digest != adapter.digest:
        raise MismatchError(
            f"promotion of adapter {adapter.digest[:12]}: expected a passing verdict about it, got "
            f"{decision.verdict.replace('_', ' ')} about {str(decision.adapter_digest)[:12]}"
        )
    answer = record_answer(context, run, request, decision) if decision.wants_person else None
    obstacle = why_not(context, run, adapter.digest)
    if obstacle is not None:
        _close(context, run, decision, decision_ref)
        return without_run("promote", run, note=f"{_verdict_was(decision)}; {obstacle}")
    if decision.wants_person:
        if answer is None:
            raise MismatchError(
                f"promotion of adapter {adapter.digest[:12]}: expected a person's answer about it, got none; "
                "nothing is promoted"
            )
        if not answer.valid:
            _close(context, run, decision, decision_ref)
            return without_run("promote", run, refused=f"{answer.says()}; nothing is promoted")
    return _promoted(context, run, adapter, decision, decision_ref, answer)


def _promoted(
    context: StepContext,
    run: PipelineRun,
    adapter: ArtifactRef,
    decision: GateDecision,
    decision_ref: ArtifactRef,
    answer: Approval | None,
) -> StepResult:
    name = run.config.tracking.registered_model
    said = answer.model_dump() if answer else None
    digest = inputs_digest(
        "promote", promoting(run.config), adapter=adapter.digest, decision=decision_ref.digest, answer=said
    )
    done = context.ledger.results(run.run_id).get("promote")
    # By this run: a later one moves the alias anew, as does this one where somebody moved it by hand.
    if done is not None and done.inputs_digest == digest and _is_champion(context, name, done):
        _close(context, run, decision, decision_ref)
        return done.model_copy(update={"reused": True})
    _check_champion(context, name, decision)
    folder = local_adapter(context, adapter)
    summary = f"{answer.says()}; {decision.summary()}" if answer else decision.summary()
    card = model_card(context, decision_ref, answer, summary=summary)
    with context.ledger.step_run(run, "promote", digest) as step_run:
        version = context.ledger.champions.register(
            name,
            folder,
            adapter_digest=adapter.digest,
            pipeline_run_id=run.run_id,
            opened_at_ms=run.opened_at_ms,
            source_run_id=step_run.run_id,
            experiment_id=run.experiment_id,
            summary=summary,
            card=card,
            verdict=decision.verdict,
            approval=answer,
        )
        # MLflow cannot compare and swap: of two runs that release at once, the earlier puts things right.
        if later := context.ledger.champions.released_after(name, run.opened_at_ms):
            context.ledger.champions.appoint(name, later.version, How.REPAIR)
            raise MismatchError(f"promotion of adapter {adapter.digest[:12]}: {overtaken(name, later)}")
        uri = f"models:/{name}/{version}"
        step_run.set_tags({tags.MODEL_VERSION: uri})
        context.ledger.note_on_pipeline_run(run, tags.MODEL_VERSION, uri)
        if answer is not None:
            step_run.log_text(answer.to_json(), "approval.json")
        result = step_run.finish(
            {"model_version": ArtifactRef(uri=uri, digest=adapter.digest)},
            {
                "version": version,
                "alias": ALIAS,
                "verdict": decision.verdict.value,
                "approved_by": answer.by if answer else None,
                "headline": "\n".join(decision.main_figures()),
            },
        )
    _close(context, run, decision, decision_ref)
    logger.info("%s is the champion of %s", uri, name)
    return result


def _verdict_was(decision: GateDecision) -> str:
    return "it passed" if decision.passed else "the gate could not tell"


def _close(context: StepContext, run: PipelineRun, decision: GateDecision, decision_ref: ArtifactRef) -> None:
    context.ledger.close_pipeline_run(
        run, verdict=decision.verdict, summary=decision.summary(), gate_run_id=decision_ref.run_id
    )


def _is_champion(context: StepContext, name: str, promotion: StepResult) -> bool:
    version = context.ledger.champions.current(name)
    return (
        version is not None and promotion.outputs["model_version"].uri == f"models:/{name}/{version.version}"
    )


def _check_champion(context: StepContext, name: str, decision: GateDecision) -> None:
    """Refuse a verdict that compares with a champion of the past.

    Raises:
        MismatchError: another adapter has become the champion since.
    """
    if not decision.compares_with_champion:
        return
    version = context.ledger.champions.current(name)
    now = version.tags.get(tags.ADAPTER_DIGEST) if version else None
    # An attempt that was killed may have made the candidate itself the champion.
    if now not in (decision.champion_digest, decision.adapter_digest):
        raise MismatchError(
            f"promotion of adapter {str(decision.adapter_digest)[:12]}: expected the champion that the gate "
            f"compared it with, {_short(decision.champion_digest)}, got {_short(now)}; start the run again"
        )


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
