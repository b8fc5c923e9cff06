"""The command line: the same steps as the pipeline, with no Airflow.

Every command lives in a module of this package that offers ``register(app)``; adding
one means writing that module and naming it in ``_COMMANDS``. No module here imports
torch, transformers, mlflow or plotly at its head: commands import what they need
when they run, so that ``safemerge --help`` answers at once.

Exit codes, of every command alike: 0 done; 1 blocked by the gate, and nothing else; 2 wrong
usage; 3 where the gate wants a person to decide; 4 an error that safemerge names on one line, or a problem
that ``inspect`` or ``recipe validate`` found; 5 adapters that differ, where ``diff --check`` asked; 6 where
``tune`` finds no merge that keeps its limits; 70 a fault of safemerge, with a traceback; 75 a pipeline step
that may be tried again; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from safemerge import __version__
from safemerge.cli import (
    audit,
    demo,
    diff,
    evaluate,
    export,
    gate,
    inspect,
    learn,
    merge,
    recipe,
    report,
    rollback,
    schema,
    score,
    step,
    sweep,
    train,
    tune,
)
from safemerge.errors import EXIT_ERROR, SafemergeError

EXIT_FAULT = 70
"""Exit code after an exception that nobody foresaw: Python's own, 1, would say that the gate has blocked."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it (128 + SIGINT)."""

_COMMANDS = (
    inspect,
    score,
    merge,
    sweep,
    learn,
    tune,
    export,
    diff,
    train,
    evaluate,
    audit,
    gate,
    recipe,
    report,
    rollback,
    schema,
    step,
    demo,
)
"""Modules whose ``register(app)`` adds commands, in the order of the help page."""


class CleanErrors(TyperGroup):
    """Turns expected failures of every command into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command.

        Raises:
            typer.Exit: with ``EXIT_ERROR`` after an expected failure, 130 after Ctrl-C.
            typer.BadParameter: a flag's value cannot be used.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(f"interrupted: {stop}" if str(stop) else "interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except typer.BadParameter as error:
            if error.__cause__ is not None:
                error.message = _in_our_words(error)
            raise
        except (SafemergeError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output left, as `head` does: no fault of ours
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            else:
                from safemerge.records import printable

                typer.echo(f"error: {printable(str(error))}", err=True)
            raise typer.Exit(EXIT_ERROR) from error


def _in_our_words(error: typer.BadParameter) -> str:
    """A flag's error as those of config files: what was expected and what was got."""
    from pydantic import ValidationError

    from safemerge.config.problems import problem

    if not isinstance(error.__cause__, ValidationError):
        return error.message
    first = error.__cause__.errors()[0]
    if first["type"] == "value_error":  # typer's own words, which say both
        return first["msg"].removeprefix("Value error, ")
    return problem([first])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"safemerge {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="safemerge",
    cls=CleanErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command explains itself, with examples: [bold]safemerge merge --help[/bold]",
)


@app.callback()
def _root(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="SAFEMERGE_DEBUG", help="Show the traceback of an error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Repair what fine-tuning does to a language model's safety, and gate what is not repaired."""


for _module in _COMMANDS:
    _module.register(app)


def main() -> None:
    """Entry point of ``safemerge`` and ``python -m safemerge``."""
    if not sys.stderr.isatty():
        # tqdm reads it when it is first imported. Bars of other libraries litter logs; our progress
        # comes in lines there.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As on stderr: what a locale such as Latin-1 has no character for is no error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(app(prog_name="safemerge"))
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(EXIT_FAULT)
