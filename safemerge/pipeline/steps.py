"""The steps by name, for schedulers that run each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from pydantic import ValidationError

from safemerge.described import first_problem
from safemerge.errors import ConfigError
from safemerge.pipeline.asking import ask
from safemerge.pipeline.closing import close
from safemerge.pipeline.context import StepContext
from safemerge.pipeline.evaluating import evaluate
from safemerge.pipeline.fine_tuning import train
from safemerge.pipeline.gating import gate
from safemerge.pipeline.learning import learn
from safemerge.pipeline.merging import merge
from safemerge.pipeline.opening import open_run
from safemerge.pipeline.promotion import promote
from safemerge.pipeline.request import StepRequest
from safemerge.pipeline.tuning import advance, choose, propose, tune_evaluate
from safemerge.pipeline.workspace import Workspace
from safemerge.records import StepResult
from safemerge.storage.disk import full_disk_errors
from safemerge.tracking.ledger import Ledger
from safemerge.tracking.server import tracking_address, tracking_errors

STEPS: dict[str, Callable[[StepContext, StepRequest], StepResult]] = {
    "open": open_run,
    "train": train,
    "learn": learn,
    "propose": propose,
    "tune_evaluate": tune_evaluate,
    "advance": advance,
    "choose": choose,
    "merge": merge,
    "evaluate": evaluate,
    "gate": gate,
    "ask": ask,
    "promote": promote,
    "close": close,
}


def run_step(name: str, request_json: str) -> StepResult:
    """Run one step against the MLflow server of ``MLFLOW_TRACKING_URI``.

    Raises:
        ConfigError: no such step, not a request, or no server is named.
        SafemergeError: what the step raises.
    """
    if name not in STEPS:
        near = get_close_matches(name, STEPS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"step: expected one of {', '.join(STEPS)}, got {name!r}{hint}")
    try:
        request = StepRequest.model_validate_json(request_json)
    except ValidationError as error:
        found = first_problem(error, "request")
        raise ConfigError(f"step {name}: expected a request as JSON, got {found}") from error
    address, workspace = tracking_address(), Workspace()
    with tracking_errors(address), full_disk_errors(workspace.home):
        return STEPS[name](StepContext(Ledger(address), workspace), request)
