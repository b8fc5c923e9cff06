"""``safemerge learn``: fit the weights of a task and a safety adapter in every layer to training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safemerge.cli import flags
from safemerge.cli.logs import plain_logs

if TYPE_CHECKING:
    from safemerge.config.learning import LearningConfig
    from safemerge.core.scoring import Progress
    from safemerge.reports.learning import Coefficients
    from safemerge.training.coefficients import OnLog

FIT = "How they are fitted"
LAMBDAS = flags.default("as tuning.learning of the config, else 1, 3 and 10")
FITTING = "fitting coefficients, at most so many steps"
"""What the progress is of: fits may end early."""

EPILOG = flags.epilog(
    "Three weights of safety, then a merge with one of them:",
    "safemerge learn --config pipeline.yaml --task-adapter adapters/task --safety-adapter adapters/safety "
    "--harm-weight 1 --harm-weight 3 --harm-weight 10 --output learned",
    "safemerge merge --task-adapter adapters/task --safety-adapter adapters/safety "
    "--aligned-model org/model-instruct --unaligned-model org/model "
    "--coefficients learned/coefficients_3.json --output repaired",
    "A quick look:",
    "safemerge learn … --harm-weight 3 --steps 20 --task-examples 40 --safety-examples 60 --output look",
    "It learns from task_training.data and safety_training.data of the pipeline, starts from its merge "
    "section, takes what no flag says from tuning.learning where there is one, and refuses data that hold a "
    "request of its evaluation suites. The losses choose no λ: merge, then let safemerge evaluate and gate "
    "judge.",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG)(learn)


def _fit(text: str, **settings: Any) -> Any:
    return flags.option(FIT, text, **settings)


def learn(
    config: Annotated[Path, typer.Option(help="The pipeline's YAML file.", show_default=False)],
    task_adapter: Annotated[
        str,
        typer.Option(
            help="Folder or hub id of the adapter to repair.", metavar="ADAPTER", show_default=False
        ),
    ],
    safety_adapter: Annotated[
        str,
        typer.Option(
            help="Folder or hub id of the adapter that carries safety.",
            metavar="ADAPTER",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder to create with coefficients_<λ>.json and a page.", show_default=False)
    ],
    harm_weight: Annotated[
        list[float] | None,
        _fit(
            "λ: weight of the loss of safe answers beside the task's. May be repeated: one fit each. "
            f"{LAMBDAS}",
            metavar="λ",
            min=0,
        ),
    ] = None,
    safety_data: Annotated[
        list[str] | None,
        _fit(
            "JSON Lines file or hub data set of requests and safe answers, in place of safety_training.data; "
            "may be repeated. Helpful answers among them keep the fit from refusing everything.",
            metavar="DATA",
        ),
    ] = None,
    steps: Annotated[int | None, _fit(f"Most steps of a fit. {flags.default(60)}", min=1)] = None,
    learning_rate: Annotated[
        float | None, _fit(f"About how far a coefficient moves in a step. {flags.default(0.05)}")
    ] = None,
    task_examples: Annotated[
        int | None, _fit(f"Most examples of the task's training data. {flags.default(100)}", min=2)
    ] = None,
    safety_examples: Annotated[
        int | None, _fit(f"Most examples of the safety training data. {flags.default(200)}", min=2)
    ] = None,
    pull: Annotated[
        float | None, _fit(f"How strongly to pull towards the configured merge. {flags.default(0.1)}", min=0)
    ] = None,
    patience: Annotated[
        int | None,
        _fit(f"Evaluations without a better held-out loss that end a fit. {flags.default(2)}", min=1),
    ] = None,
    warm_start: Annotated[
        bool, _fit("Start each fit from the result of the next smaller λ: quicker, but no longer by itself.")
    ] = False,
    seed: Annotated[int | None, _fit(f"Seed of the choice and order of examples. {flags.default(0)}")] = None,
    device: flags.Device = "cpu",
    as_json: flags.AsJson = False,
) -> None:
    """Fit the weights of the task and the safety adapter in every layer to training data.

    Two numbers a layer, everything else frozen, by the task's own loss plus λ times the loss of safe
    answers. One step is a forward and a backward pass over 10 examples, so that a fit of 60 steps costs
    about as much as 75 steps of fine-tuning at batch size 8, plus a third for measuring.
    """
    from safemerge.cli.tables import warn
    from safemerge.config.load import load_pipeline
    from safemerge.config.places import data_source
    from safemerge.config.training import DataSource
    from safemerge.storage.atomic import check_absent

    plain_logs()
    pipeline = load_pipeline(config)
    check_absent(output)
    settings = learning_config(
        {
            "harm_weights": tuple(harm_weight) if harm_weight else None,
            "steps": steps,
            "learning_rate": learning_rate,
            "task_examples": task_examples,
            "safety_examples": safety_examples,
            "pull": pull,
            "patience": patience,
            "warm_start": warm_start or None,
            "seed": seed,
        },
        pipeline.tuning.learning if pipeline.tuning else None,
    )
    from safemerge.engine.learning import learn_coefficients
    from safemerge.engine.merging import merge_settings
    from safemerge.storage.hub import named_in_config

    with _progress(settings) as (on_layer, on_step):
        records = learn_coefficients(
            task_adapter,
            safety_adapter,
            named_in_config(pipeline.aligned_model),
            named_in_config(pipeline.unaligned_model),
            task_data=pipeline.task_training.data,
            safety_data=tuple(DataSource(path=data_source(path, Path.cwd())) for path in safety_data or ())
            or pipeline.safety_training.data,
            # A choice among fits is made on the development split, which none of them may have seen.
            suites=(*pipeline.evaluation.suites, *(pipeline.tuning.suites if pipeline.tuning else ())),
            learning=settings,
            output=output,
            device=device,
            progress=on_layer,
            on_log=on_step,
            **merge_settings(pipeline.merge),
        )
    warn(*records[0].warnings)
    if as_json:
        import json

        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], ensure_ascii=False))
        return
    _print(records, output)


def _nothing(count: int) -> None:
    """Before the first fit."""


@contextmanager
def _progress(settings: LearningConfig) -> Iterator[tuple[Progress, OnLog]]:
    """Progress of the layers' scores, and after them of the steps of all fits, with the time left."""
    from safemerge.cli.tables import progress_bar
    from safemerge.evaluation.progress import progress

    order = sorted(set(settings.harm_weights))
    with ExitStack() as shown:
        scored = shown.enter_context(progress_bar())
        advance: Callable[[int], None] = _nothing
        done = 0

        def on_layer(number: int, of: int, module: str) -> None:
            nonlocal advance
            scored(number, of, module)
            if number == of:  # two bars at once would write over each other
                shown.close()
                advance = shown.enter_context(progress(FITTING, len(order) * settings.steps))

        def on_step(figures: Mapping[str, float], step: int) -> None:
            nonlocal done
            # Steps that an earlier fit left out by ending early count as done.
            now = order.index(figures["harm_weight"]) * settings.steps + step
            advance(now - done)
            done = now

        yield on_layer, on_step


def learning_config(given: dict[str, Any], configured: LearningConfig | None) -> LearningConfig:
    """The flags that were given, over what the config says, over the defaults.

    Raises:
        ConfigError: a value is out of bounds; it is named.
    """
    from pydantic import ValidationError

    from safemerge.config.learning import LearningConfig
    from safemerge.config.problems import problem
    from safemerge.errors import ConfigError

    try:
        usual = {} if configured is None else configured.model_dump()
        return LearningConfig(**usual | {name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        said: dict[str, str] = {}
        for detail in error.errors():
            # What is no single setting's is that two λ cannot be told apart.
            setting = str(detail["loc"][0]) if detail["loc"] else "harm_weights"
            name = "harm_weight" if setting == "harm_weights" else setting  # one flag for each of them
            said.setdefault(flags.flag(name), problem([detail]))
        raise ConfigError("; ".join(f"{name}: {what}" for name, what in said.items())) from error


def _print(records: list[Coefficients], output: Path) -> None:
    from safemerge.cli.tables import console, table
    from safemerge.engine.coefficient_files import file_name
    from safemerge.plots.coefficients import COLUMNS, coefficient_row

    out = console()
    rows = [coefficient_row(record) for record in records]
    out.print(table(COLUMNS, rows, title="Learned coefficients: losses on held-out answers"))
    cost = records[-1].cost
    if cost.fine_tuning_s:
        total_s = sum(record.cost.wall_s for record in records)
        out.print(f"{total_s:.0f} s in all; fine-tuning the task adapter took {cost.fine_tuning_s:.0f} s")
    for record in records:
        typer.echo(str(output / file_name(record)))
