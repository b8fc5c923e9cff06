"""``safemerge train``: fine-tune an adapter of a pipeline file, with no Airflow and no MLflow."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from safemerge.cli.flags import AsJson, epilog
from safemerge.cli.interrupts import resumable
from safemerge.cli.logs import plain_logs

EPILOG = epilog(
    "safemerge train --config pipeline.yaml --adapter task --output adapters/task",
    "safemerge train --config pipeline.yaml --adapter safety --output adapters/safety",
    "Interrupted, the same command goes on from its last checkpoint.",
    "On several devices of a machine: processes: 2 in the pipeline file. On several machines: "
    "[cyan]torchrun --nnodes … -m safemerge train …[/cyan] on each, with the number of all "
    "processes in the file.",
)


class AdapterRole(StrEnum):
    """Which training of the pipeline file to run."""

    TASK = "task"
    SAFETY = "safety"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(train)


def train(
    config: Annotated[Path, typer.Option(help="The pipeline's YAML file.", show_default=False)],
    adapter: Annotated[AdapterRole, typer.Option(help="Which adapter to train.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder to create with the adapter.", show_default=False)],
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints; default: .OUTPUT.unfinished beside it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the task adapter or the safety adapter on the aligned model.

    The adapter's folder also holds safemerge_training.json: how it was trained.
    """
    import shutil

    from safemerge.config.load import load_pipeline
    from safemerge.storage.atomic import check_absent, unfinished

    plain_logs()
    pipeline = load_pipeline(config)
    settings = pipeline.training_of(adapter)
    check_absent(output)
    from safemerge.storage.hub import resolve
    from safemerge.training.data import load_examples
    from safemerge.training.processes import is_main_process
    from safemerge.training.sft import train_adapter

    examples = load_examples(settings.data)
    checkpoints = work or unfinished(output)
    with resumable(checkpoints):
        report = train_adapter(
            resolve(pipeline.aligned_model, here=False),
            examples,
            output,
            checkpoints,
            settings,
            model_name=pipeline.aligned_model,
        )
    if not is_main_process():
        return
    if work is None:
        shutil.rmtree(checkpoints, ignore_errors=True)
    if as_json:
        typer.echo(report.to_json(), nl=False)
        return
    typer.echo(
        f"{output}: {report.steps} steps on {report.examples} examples, final loss {report.final_loss:.4f}"
    )
