"""Make an adapter that passed the gate the champion."""

from __future__ import annotations

import logging

from safemerge.errors import MismatchError
from safemerge.pipeline.context import StepContext, inputs_digest, local_adapter, local_file
from safemerge.pipeline.reporting import model_card
from safemerge.pipeline.request import StepRequest
from safemerge.records import ArtifactRef, GateDecision, StepResult, Verdict
from safemerge.tracking import tags
from safemerge.tracking.champions import Release
from safemerge.tracking.ledger import PipelineRun

logger = logging.getLogger(__name__)


def promote(context: StepContext, request: StepRequest) -> StepResult:
    """Register the adapter as a new model version and move the alias ``champion`` to it.

    Never skipped because it was done before: another adapter may have become the champion since. Not done
    where a later run has released one: a run that was slow, or was started again, does not undo that.

    Inputs:
        adapter: the candidate that the gate judged.
        decision: the gate's verdict; read here again, so that no scheduler can promote
            what did not pass.

    Outputs:
        model_version: ``models:/<name>/<version>``; none where nothing was promoted, and a note says why.

    Raises:
        MismatchError: the verdict is not a pass, is about another adapter, or compares it with a
            champion that another has replaced since; or a later run released one at the same moment.
    """
    run = context.ledger.pipeline_run(request.run_id or "")
    adapter, decision_ref = request.input("adapter"), request.input("decision")
    decision = GateDecision.read(local_file(context, decision_ref))
    if not decision.passed or decision.adapter_digest != adapter.digest:
        raise MismatchError(
            f"promotion of adapter {adapter.digest[:12]}: expected a passing verdict about it, got "
            f"{decision.verdict.replace('_', ' ')} about {str(decision.adapter_digest)[:12]}"
        )
    name = run.config.tracking.registered_model
    later = context.ledger.champions.released_after(name, run.opened_at_ms)
    if not run.plan.promote or later is not None:
        why = _overtaken(name, later) if later else "this run was asked not to promote"
        _close(context, run, decision, decision_ref)
        return StepResult(
            step="promote",
            run_id=run.run_id,
            inputs_digest=run.plan.inputs_digest,
            figures={"note": f"it passed; {why}"},
        )
    digest = inputs_digest("promote", name=name, adapter=adapter.digest, decision=decision_ref.digest)
    done = context.ledger.results(run.run_id).get("promote")
    if done is not None and done.inputs_digest == digest:  # by this run: a later one moves the alias anew
        _close(context, run, decision, decision_ref)
        return done.model_copy(update={"reused": True})
    _check_champion(context, name, decision)
    folder = local_adapter(context, adapter)
    card = model_card(context, decision_ref)
    with context.ledger.step_run(run, "promote", digest) as step_run:
        version = context.ledger.champions.register(
            name,
            folder,
            adapter_digest=adapter.digest,
            pipeline_run_id=run.run_id,
            opened_at_ms=run.opened_at_ms,
            source_run_id=step_run.run_id,
            experiment_id=run.experiment_id,
            summary=decision.summary(),
            card=card,
        )
        # MLflow cannot compare and swap: of two runs that release at once, the earlier puts things right.
        if later := context.ledger.champions.released_after(name, run.opened_at_ms):
            context.ledger.champions.appoint(name, later.version)
            raise MismatchError(f"promotion of adapter {adapter.digest[:12]}: {_overtaken(name, later)}")
        uri = f"models:/{name}/{version}"
        step_run.set_tags({"safemerge.model_version": uri})
        result = step_run.finish(
            {"model_version": ArtifactRef(uri=uri, digest=adapter.digest)},
            {"version": version, "alias": "champion", "verdict": decision.verdict.value},
        )
    _close(context, run, decision, decision_ref)
    logger.info("%s is the champion of %s", uri, name)
    return result


def _close(context: StepContext, run: PipelineRun, decision: GateDecision, decision_ref: ArtifactRef) -> None:
    context.ledger.close_pipeline_run(
        run, verdict=Verdict.PASS, summary=decision.summary(), gate_run_id=_run_id_of(decision_ref)
    )


def _overtaken(name: str, later: Release) -> str:
    return (
        f"MLflow run {later.run_id}, which was opened after this one, has released "
        f"models:/{name}/{later.version}: nothing is promoted"
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


def _run_id_of(ref: ArtifactRef) -> str:
    return ref.uri.removeprefix("runs:/").partition("/")[0]
