"""``safemerge evaluate``: measure the aligned model or an adapter, with no Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog
from safemerge.cli.logs import plain_logs

if TYPE_CHECKING:
    from safemerge.records import EvaluationReport

ALIGNED = "aligned"
"""Name of the arm without an adapter."""

EPILOG = epilog(
    "safemerge evaluate --config pipeline.yaml --output reports/aligned",
    "safemerge evaluate --config pipeline.yaml --adapter adapters/task --arm fine_tuned "
    "--output reports/fine_tuned",
    "safemerge evaluate --config pipeline.yaml --adapter models:/support-bot-lora@champion "
    "--output reports/champion",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(evaluate)


def evaluate(
    config: Annotated[Path, typer.Option(help="The pipeline's YAML file.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(help="Folder to create with report.json and responses.jsonl.", show_default=False),
    ],
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Folder, hub id or MLflow address (runs:/…, models:/…@champion) of an adapter; "
            "without it the aligned model is measured."
        ),
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="Name in the report; default: aligned, or the adapter's name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure task utility, harmfulness and over-refusal.

    The report is what `safemerge gate` judges; responses.jsonl holds every prompt, answer and flag.
    """
    import json

    from safemerge.config.load import load_pipeline
    from safemerge.errors import ConfigError
    from safemerge.evaluation.libraries import check_libraries
    from safemerge.storage.atomic import atomic_folder, check_absent

    check_libraries()
    plain_logs()
    name = arm or (arm_name(adapter) if adapter else ALIGNED)
    if adapter and name == ALIGNED:
        raise ConfigError(
            f"--arm {ALIGNED}: expected another name for {adapter}, as this one means the model alone"
        )
    if not adapter and name != ALIGNED:
        raise ConfigError(f"--arm {arm}: expected --adapter beside it, got none")
    pipeline = load_pipeline(config)
    check_libraries(pipeline.evaluation.engine)
    check_absent(output)
    from safemerge.evaluation.arm import evaluate_arm
    from safemerge.storage.adapters import adapter_digest
    from safemerge.storage.checkpoints import Checkpoint
    from safemerge.storage.hub import resolve

    model = resolve(pipeline.aligned_model)
    folder = _adapter_folder(adapter) if adapter else None
    evaluation = evaluate_arm(
        model,
        folder,
        name,
        pipeline.evaluation,
        # The same digests as in the pipeline, so that the gate can compare reports of both.
        model_digest=Checkpoint.open(model).files_digest(),
        adapter_digest=adapter_digest(folder) if folder else None,
    )
    with atomic_folder(output) as partial:
        (partial / "report.json").write_text(evaluation.report.to_json(), encoding="utf-8")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation.rows)
        (partial / "responses.jsonl").write_text("".join(lines), encoding="utf-8")
    if as_json:
        typer.echo(evaluation.report.to_json(), nl=False)
        return
    _print(evaluation.report)
    typer.echo(str(output))


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


def _print(report: EvaluationReport) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(report.arm), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("measured", "figure", "95 % interval", "by"):
        table.add_column(column, overflow="fold")
    for suite in report.suites:
        table.add_row(
            f"{suite.kind.replace('_', ' ')} rate, {escape(suite.suite)}",
            "none" if suite.rate is None else f"{100 * suite.rate:.1f} % of {suite.n}",
            f"{suite.interval.low:.3f} to {suite.interval.high:.3f}" if suite.interval else "",
            f"{escape(suite.judge.id)}{', a smoke judge' if suite.judge.smoke else ''}",
        )
    if utility := report.utility:
        table.add_row(
            f"utility, {escape(utility.task)}",
            "none" if utility.value is None else f"{utility.value:.4f}",
            "",
            f"{escape(utility.metric)}, {'higher' if utility.higher_is_better else 'lower'} is better",
        )
    Console(highlight=False).print(table)
