"""``safemerge tune``: choose a merge by evidence on a development split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli import flags
from safemerge.cli.interrupts import resumable
from safemerge.cli.learn import LAMBDAS, learning_config
from safemerge.cli.logs import plain_logs

if TYPE_CHECKING:
    from safemerge.reports.tuning import TuneReport

EXIT_NONE = 6
"""Exit code where no candidate keeps the limits."""

EPILOG = flags.epilog(
    "The config's tuning section names the development split, the grid and the limits:",
    "safemerge tune --config pipeline.yaml --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
    "--output ./tuned",
    "With coefficients learned at two strengths among the candidates:",
    "safemerge tune --config pipeline.yaml --task-adapter ./gsm8k-lora --safety-adapter ./safety-lora "
    "--harm-weight 3 --harm-weight 10 --output ./tuned",
    "The choice as settings to paste into a config, and as an adapter:",
    "cat ./tuned/merge.yaml; safemerge inspect ./tuned/chosen",
    "Interrupted? The same command goes on where it stopped; ./.tuned.unfinished holds what was measured.",
    exit_codes=f"Exit code: 0 chosen, 2 wrong usage, 4 an error that one line on stderr names, {EXIT_NONE} "
    "no candidate keeps the limits (report and page say which limit each missed).",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(tune)


def tune(
    config: Annotated[
        Path, typer.Option(help="The pipeline's YAML file, with a section tuning.", show_default=False)
    ],
    task_adapter: Annotated[
        str,
        typer.Option(help="Adapter to repair: a folder or hub id.", metavar="ADAPTER", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder to create with the report, a page, merge.yaml and the adapter (chosen).",
            show_default=False,
        ),
    ],
    safety_adapter: flags.SafetyAdapter = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Fit coefficients to the training data too, and let each λ be a candidate; a section "
            "tuning.learning does so by itself.",
        ),
    ] = False,
    harm_weight: Annotated[
        list[float] | None,
        flags.option(None, f"λ; may be repeated. {LAMBDAS}", metavar="λ", min=0),
    ] = None,
    device: flags.Device = "cpu",
    as_json: flags.AsJson = False,
) -> None:
    """Choose the merge of least harm whose utility is not inferior.

    Scores the layers once, measures the candidates of tuning.grid round by round on the development split,
    dropping those that cannot win, and shows the choice beside other arms on the split of the config's
    evaluation, which the choice never saw.
    """
    from safemerge.cli.advice import option_warnings
    from safemerge.cli.tables import progress_bar, warn
    from safemerge.config.load import load_pipeline
    from safemerge.engine.race import tuning_of
    from safemerge.engine.sweeping import candidates
    from safemerge.engine.tuning import tune_adapters
    from safemerge.storage.atomic import unfinished

    plain_logs()
    pipeline = load_pipeline(config)
    tuning = tuning_of(pipeline)
    learning = tuning.learning
    if learn or harm_weight:
        learning = learning_config({"harm_weights": tuple(harm_weight) if harm_weight else None}, learning)
    for options in candidates(tuning.model_copy(update={"learning": learning}).known_grid).values():
        warn(*option_warnings(options))
    with resumable(unfinished(output)), progress_bar() as progress:
        report = tune_adapters(
            pipeline,
            task_adapter,
            safety_adapter,
            output=output,
            learning=learning,
            device=device,
            progress=progress,
        )
    warn(*report.warnings)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report)
        typer.echo(str(output))
    if report.chosen is None:
        raise typer.Exit(EXIT_NONE)


def _print(report: TuneReport) -> None:
    from safemerge.cli.tables import console, table
    from safemerge.plots.tune import ARM_COLUMNS, COLUMNS, arm_row, candidate_row

    out = console()
    rows = [candidate_row(candidate) for candidate in report.candidates]
    out.print(table(COLUMNS, rows, f"{len(rows)} candidates, development split", names=2))
    if report.final:
        title = "arms, final split (the choice never saw it)"
        out.print(table(ARM_COLUMNS, map(arm_row, report.final), title))
    else:
        for candidate in report.candidates:
            out.print(f"{candidate.name}: {candidate.reason}", markup=False, soft_wrap=True)
    out.print(report.summary, markup=False, soft_wrap=True)
