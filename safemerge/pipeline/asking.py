"""Put a decision that a person must take into words. Who answers, and how, is the scheduler's part."""

from __future__ import annotations

from safemerge.errors import MismatchError
from safemerge.gate.rendering import markdown
from safemerge.pipeline.context import StepContext, local_file, without_run
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.signing import why_not
from safemerge.records import GateDecision, StepResult, printable
from safemerge.tracking import tags
from safemerge.tracking.champions import champion_of


def ask(context: StepContext, request: StepRequest) -> StepResult:
    """Say what a person is to decide, and note on the pipeline run that it waits for one.

    Inputs:
        adapter: the candidate.
        decision: the gate's verdict about it.

    Returns:
        The figures ``subject``, one line; ``body``, Markdown in which nothing that data hold can become a
        link or a tag; and ``report_page``, None where there is no release report. Only a figure ``note``
        where the answer would change nothing.

    Raises:
        MismatchError: the verdict is about another adapter, or leaves nothing to decide.
    """
    run = context.ledger.pipeline_run(request.opened_run_id)
    adapter, decision_ref = request.input("adapter"), request.input("decision")
    decision = GateDecision.read(local_file(context, decision_ref))
    if not decision.wants_person or decision.adapter_digest != adapter.digest:
        raise MismatchError(
            f"signature for adapter {adapter.digest[:12]}: expected a verdict about it that a person "
            f"decides, got {decision.verdict.replace('_', ' ')} about {str(decision.adapter_digest)[:12]}"
        )
    if obstacle := why_not(context, run, adapter.digest):
        return without_run("ask", run, note=f"nobody is asked: {obstacle}")
    name = run.config.tracking.registered_model
    verdict = decision.verdict.replace("_", " ")
    subject = f"{run.config.name}: {verdict}. Release adapter {adapter.digest[:12]} as {champion_of(name)}?"
    body = f"{markdown(decision)}\n{_champion_now(context, name)}\n"
    context.ledger.note_sign_off(run, "waiting")
    page = context.ledger.report_page(run)
    return without_run("ask", run, subject=printable(subject), body=body, report_page=page)


def _champion_now(context: StepContext, name: str) -> str:
    version = context.ledger.champions.current(name)
    if version is None:
        return "There is no champion yet."
    digest = version.tags.get(tags.ADAPTER_DIGEST, "unknown")
    return f"The champion now is version {version.version}, adapter sha256 {digest}."
