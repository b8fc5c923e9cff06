"""``safemerge recipe``: write, check and list recipes, the files of which each is a retraining DAG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safemerge.cli.flags import AsJson, epilog
from safemerge.errors import EXIT_ERROR, MissingDependencyError

if TYPE_CHECKING:
    from safemerge.config.recipes import RecipeConfig, ScheduleConfig
    from safemerge.pipeline.recipes import ReadRecipe

EXIT_CODES = f"Exit code: 0 all can be used, {EXIT_ERROR} a problem, which is listed; 2 wrong usage."
Places = Annotated[
    list[Path] | None,
    typer.Argument(help="Recipes, or folders of them.", metavar="PLACE...", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True)
    group.command(name="new", epilog=NEW)(new)
    group.command(name="validate", epilog=VALIDATE)(validate)
    group.command(name="list", epilog=LIST)(list_recipes)
    app.add_typer(
        group,
        name="recipe",
        help="Write, check and list recipes: each is a YAML file that Airflow runs as a DAG.",
        rich_help_panel="Pipeline",
        epilog=epilog(
            "safemerge recipe list",
            "safemerge recipe new support-bot --from qwen2-7b-gsm8k --folder recipes",
            "safemerge recipe validate recipes",
        ),
    )


NEW = epilog(
    "safemerge recipe new support-bot --from qwen2-7b-gsm8k --folder recipes",
    "safemerge recipe new night --from recipes/support-bot.yaml --folder recipes",
    "safemerge schema recipe > recipe.schema.json",
    "Then begin the recipe with: # yaml-language-server: $schema=recipe.schema.json",
)


DEMO_MODELS = (
    "the demo's models: `make demo`, or `safemerge demo`, makes them in var/demo/models/aligned and "
    "var/demo/models/unaligned; name these as aligned_model and unaligned_model, by paths that are absolute "
    "or count from the recipe's folder, or models of your own"
)


def new(
    name: Annotated[
        str,
        typer.Argument(help="Of the recipe, its DAG, experiment and registered model.", show_default=False),
    ],
    source: Annotated[
        str, typer.Option("--from", help="A shipped recipe or a file to begin with, comments and all.")
    ] = "demo",
    folder: Annotated[Path, typer.Option(help="Where to write NAME.yaml.")] = Path(),
) -> None:
    """Write a recipe that begins as a copy of another."""
    from safemerge.cli.tables import warn
    from safemerge.pipeline.recipes import new_recipe, read_recipes

    path = new_recipe(name, source, folder)
    (read,) = read_recipes([path])
    warn(*(f"still to do: {problem}" for problem in read.problems))
    if source == "demo" and read.problems:
        typer.echo(DEMO_MODELS, err=True)
    typer.echo(path)


VALIDATE = epilog(
    "safemerge recipe validate recipes",
    "safemerge recipe validate recipes/support-bot.yaml --json",
    exit_codes=EXIT_CODES,
)


def validate(places: Places = None, as_json: AsJson = False) -> None:
    """Say all that is wrong with recipes, each problem with its file and key.

    Reads what lies on this machine, as a run would: data, suites, models, lm-eval's tasks. The hub is asked
    by runs alone.
    """
    from safemerge.cli.tables import waiting
    from safemerge.evaluation.libraries import check_lm_eval

    with waiting("reading what recipes name"):
        read = _read(places or [Path()], tasks=True)
    if as_json:
        _print_json(read)
    else:
        _print_problems(read)
    try:
        check_lm_eval()
    except MissingDependencyError as missing:
        typer.echo(f"note: utility tasks, metrics and filters were not checked: {missing}", err=True)
    if any(one.problems for one in read):
        raise typer.Exit(EXIT_ERROR)


LIST = epilog(
    "safemerge recipe list                # those that are shipped",
    "safemerge recipe list recipes",
    "safemerge recipe list recipes --json | jq .[].name",
)


def list_recipes(places: Places = None, as_json: AsJson = False) -> None:
    """List recipes: name, when they are due, what they train, and whether they can be used.

    Looks at the files alone; `safemerge recipe validate` also reads what they name.
    """
    from safemerge.cli.tables import console, table

    read = _read(places, offline=False)
    if as_json:
        _print_json(read)
        return
    rows = [
        [one.recipe.name, due(one.recipe.schedule), _models(one.recipe), "no" if one.problems else "yes"]
        if one.recipe
        else [one.path.stem, "", "", "no"]
        for one in read
    ]
    console().print(table(["recipe", "due", "aligned and unaligned model", "valid"], rows, names=4))
    _print_problems([one for one in read if one.problems])


def due(schedule: ScheduleConfig) -> str:
    """When a recipe is due, in a few words."""
    parts = [f"{schedule.cron} {schedule.timezone}"] if schedule.cron else []
    parts += [f"new {data.asset}" for data in schedule.data]
    return " or ".join(parts) or "by hand"


def _read(places: list[Path] | None, *, offline: bool = True, tasks: bool = False) -> list[ReadRecipe]:
    from safemerge.pipeline.recipes import read_recipes, recipe_files, shipped_recipes

    files = recipe_files(places) if places else shipped_recipes().values()
    return read_recipes(files, offline=offline, tasks=tasks)


def _models(recipe: RecipeConfig) -> str:
    return "\n".join(source.partition("@")[0] for source in (recipe.aligned_model, recipe.unaligned_model))


def _print_problems(read: list[ReadRecipe]) -> None:
    from rich.markup import escape

    from safemerge.cli.tables import console

    out = console()
    for one in read:
        for problem in one.problems:
            out.print(f"[bold red]problem:[/] {escape(f'{one.path}: {problem}')}", soft_wrap=True)
        if not one.problems:
            out.print(f"[bold green]valid:[/] {escape(str(one.path))}", soft_wrap=True)


def _print_json(read: list[ReadRecipe]) -> None:
    import json

    rows = [
        {
            "file": str(one.path),
            "name": one.recipe.name if one.recipe else None,
            "due": due(one.recipe.schedule) if one.recipe else None,
            "aligned_model": one.recipe.aligned_model if one.recipe else None,
            "unaligned_model": one.recipe.unaligned_model if one.recipe else None,
            "problems": one.problems,
        }
        for one in read
    ]
    typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
