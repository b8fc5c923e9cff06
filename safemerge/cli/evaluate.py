"""``safemerge evaluate``: measure the aligned model or an adapter, with no Airflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.arms import ALIGNED
from safemerge.cli.flags import AsJson, epilog
from safemerge.cli.interrupts import resumable
from safemerge.cli.logs import plain_logs

if TYPE_CHECKING:
    from safemerge.config.pipeline import PipelineConfig
    from safemerge.evaluation.evaluating import Evaluation
    from safemerge.records import EvaluationReport, SuiteReport

EPILOG = epilog(
    "safemerge evaluate --config pipeline.yaml --output eval/aligned",
    "safemerge evaluate --config pipeline.yaml --adapter ./repaired --output eval/repaired",
    "safemerge evaluate --config pipeline.yaml --aligned --adapter fine_tuned=./fine-tuned "
    "--adapter repaired=./repaired --output eval",
    "safemerge evaluate --config pipeline.yaml --adapter now=models:/support-bot-lora@champion "
    "--adapter next=./repaired --output eval",
    "Several arms share one load of the model and of each judge, and each is reported in a folder of its "
    "name: eval/repaired/report.json. What is unfinished lies beside the output (eval: .eval.unfinished) "
    "until it is done: after a kill, the same command goes on where it was.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(evaluate)


def evaluate(
    ctx: typer.Context,
    config: Annotated[Path, typer.Option(help="The pipeline's YAML file.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder to create with report.json and responses.jsonl; of several arms, each in a folder "
            "of its name.",
            show_default=False,
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]ADAPTER",
            help="Folder, hub id or MLflow address (runs:/…, models:/…@champion) of an adapter, with a "
            "name for the report; may be repeated. Without it the aligned model is measured.",
            show_default=False,
        ),
    ] = None,
    aligned: Annotated[
        bool, typer.Option("--aligned", help="Measure the aligned model beside the adapters.")
    ] = False,
    arm: Annotated[
        str | None,
        typer.Option(
            help="Name of the one adapter in the report; default: its own, or aligned.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure task utility, harmfulness and over-refusal.

    The report is what `safemerge gate` judges; responses.jsonl holds every prompt, answer and flag.
    """
    from safemerge.config.load import load_pipeline
    from safemerge.evaluation.libraries import check_libraries
    from safemerge.storage.atomic import atomic_folder, check_absent, unfinished

    check_libraries()
    plain_logs()
    arms = _arms(ctx, adapter or [], arm, aligned)
    pipeline = load_pipeline(config)
    check_libraries(pipeline.evaluation.engine)
    check_absent(output)
    _warn_of_suites(pipeline, config)
    from safemerge.evaluation.evaluating import evaluate_arms
    from safemerge.storage.adapters import adapter_digest
    from safemerge.storage.checkpoints import Checkpoint
    from safemerge.storage.hub import resolve

    model = resolve(pipeline.aligned_model, here=False)
    folders = {name: _adapter_folder(of) if of else None for name, of in arms.items()}
    work = unfinished(output)
    with resumable(work):
        evaluations = evaluate_arms(
            model,
            folders,
            pipeline.evaluation,
            # The same digests as in the pipeline, so that the gate can compare reports of both.
            model_digest=Checkpoint.open(model).files_digest(),
            adapter_digests={name: adapter_digest(of) if of else None for name, of in folders.items()},
            policy=pipeline.gate,
            work=work,
        )
    with atomic_folder(output) as partial:
        for name, evaluation in evaluations.items():
            _write(evaluation, partial / name if len(arms) > 1 else partial)
    shutil.rmtree(work, ignore_errors=True)
    reports = {name: evaluation.report for name, evaluation in evaluations.items()}
    if as_json:
        single = next(iter(reports.values())).to_json()
        typer.echo(single if len(reports) == 1 else _as_json(reports), nl=False)
        return
    for report in reports.values():
        _print(report)
    typer.echo(str(output))


def _warn_of_suites(pipeline: PipelineConfig, config: Path) -> None:
    """Say before anything is measured what suites are too small to show, or count twice."""
    from safemerge.cli.tables import warn
    from safemerge.evaluation.suites import read_suite, repeated_prompts, size
    from safemerge.gate import small_suites

    suites = [read_suite(suite) for suite in pipeline.evaluation.suites]
    problems = [*small_suites(pipeline.gate, map(size, suites)), *repeated_prompts(suites)]
    warn(*(f"{config}: {problem}" for problem in problems))


def _arms(ctx: typer.Context, adapters: list[str], arm: str | None, aligned: bool) -> dict[str, str | None]:
    """Name of an arm to its adapter as the user wrote it; None for the aligned model.

    Raises:
        ConfigError: a name cannot be one, or stands for two arms.
    """
    from safemerge.errors import ConfigError

    named = [named_adapter(text) for text in adapters]
    if arm is not None and (len(named) > 1 or (aligned and named)):
        ctx.fail("expected --arm with one adapter alone; of several write --adapter NAME=ADAPTER")
    if arm is not None and not named and arm != ALIGNED:
        raise ConfigError(f"--arm {arm}: expected --adapter beside it, got none")
    arms: dict[str, str | None] = {ALIGNED: None} if aligned or not named else {}
    for name, adapter in named:
        name = arm or name or arm_name(adapter)
        if name == ALIGNED:
            raise ConfigError(
                f"arm {ALIGNED}: expected another name for {adapter}, as this one means the model alone; "
                f"write --adapter NAME={adapter}"
            )
        if name in arms:
            raise ConfigError(
                f"arm {name}: expected a name of its own for {adapter}, got that of {arms[name]}"
            )
        arms[name] = adapter
    strange = [name for name in arms if name in (".", "..") or "/" in name or "\0" in name]
    if len(arms) > 1 and strange:
        raise ConfigError(
            f"expected names that folders can have, got {', '.join(strange)}; write --adapter NAME=ADAPTER"
        )
    return arms


def named_adapter(text: str) -> tuple[str | None, str]:
    """The name that was given to an adapter, and the adapter.

    What stands before the first "=" is a name unless it holds a slash or all of the text is a folder.

    >>> named_adapter("repaired=./out")
    ('repaired', './out')
    >>> named_adapter("./lr=2e-3")
    (None, './lr=2e-3')
    """
    name, given, adapter = text.partition("=")
    if not given or not name or not adapter or "/" in name or Path(text).is_dir():
        return None, text
    return name, adapter


def arm_name(adapter: str) -> str:
    """What to call an adapter in a report: the last part of its folder, hub id or MLflow address.

    >>> arm_name("models:/support-bot-lora@champion")
    'support-bot-lora@champion'
    >>> arm_name("models:/support-bot-lora/3")
    'support-bot-lora/3'
    >>> arm_name("runs:/0a1b2c/merge/safemerge/")
    'safemerge'
    >>> arm_name("org/support-lora@v1")
    'support-lora@v1'
    """
    scheme, _, address = adapter.partition(":/")
    if scheme == "models":
        return address.strip("/")
    if address:
        return address.rstrip("/").rpartition("/")[2]
    folder = Path(adapter).expanduser()
    # Resolved, as "." and ".." are no names.
    return folder.resolve().name if folder.is_dir() else adapter.partition("/")[2] or adapter


def _adapter_folder(adapter: str) -> Path:
    """The adapter on this machine: a folder, or fetched from the hub or from MLflow."""
    if ":/" in adapter:
        from safemerge.pipeline.workspace import Workspace
        from safemerge.tracking.ledger import Ledger

        return Ledger().fetch(adapter, Workspace().cache)
    from safemerge.storage.hub import resolve

    return resolve(adapter, "adapter")


def _write(evaluation: Evaluation, folder: Path) -> None:
    """The report of one arm, and a line for every prompt."""
    from safemerge.records import EVALUATION_REPORT_FILE, RESPONSES_FILE

    folder.mkdir(exist_ok=True)
    (folder / EVALUATION_REPORT_FILE).write_text(evaluation.report.to_json(), encoding="utf-8")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.rows)
    (folder / RESPONSES_FILE).write_text("".join(lines), encoding="utf-8")


def _as_json(reports: Mapping[str, EvaluationReport]) -> str:
    """One object of several reports, by arm."""
    content = {name: report.model_dump(mode="json") for name, report in reports.items()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def asked_of(suite: SuiteReport) -> str:
    """How many prompts there were, where not all of them were asked."""
    return f", stopped early of {suite.planned}" if suite.stopped else ""


def _print(report: EvaluationReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from safemerge.records import printable

    def shown(text: str) -> str:
        return escape(printable(text))

    table = Table(title=shown(report.arm), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("measured", "figure", "95 % interval", "by"):
        table.add_column(column, overflow="fold")
    for suite in report.suites:
        table.add_row(
            f"{suite.kind.replace('_', ' ')} rate, {shown(suite.suite)}",
            "none" if suite.rate is None else f"{100 * suite.rate:.1f} % of {suite.n}{asked_of(suite)}",
            f"{suite.interval.low:.3f} to {suite.interval.high:.3f}" if suite.interval else "",
            f"{shown(suite.judge.id)}{', a smoke judge' if suite.judge.smoke else ''}",
        )
    if utility := report.utility:
        table.add_row(
            f"utility, {shown(utility.task)}",
            "none" if utility.value is None else f"{utility.value:.4f}",
            "",
            f"{shown(utility.metric)}, {'higher' if utility.higher_is_better else 'lower'} is better",
        )
    Console(highlight=False).print(table)
