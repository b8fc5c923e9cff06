"""``safemerge step``: one pipeline step in its own process, as the scheduler runs it."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from safemerge.cli.logs import plain_logs

EXIT_RETRY = 75
"""Exit code (EX_TEMPFAIL) where the tracking server or a full disk was at fault, and a retry may mend it."""

EPILOG = "\n\n".join(
    (
        "[bold]Example[/bold] (paste it from a task's log to repeat a step by hand)",
        """[cyan]safemerge step evaluate '{"run_id": "3f1c…", "options": {"arm": "aligned"}}'[/cyan]""",
        f"Exit code: 0 done, 2 wrong usage, 4 an error that one line on stderr names, {EXIT_RETRY} one "
        "that another try may mend.",
    )
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG, rich_help_panel="Pipeline")(step)


def step(
    name: Annotated[
        str,
        typer.Argument(
            help="open, train, learn, propose, tune_evaluate, advance, choose, merge, evaluate, gate, ask, "
            "promote or close.",
            show_default=False,
        ),
    ],
    request: Annotated[str, typer.Argument(help="The request as JSON: run_id, inputs, options.")] = "{}",
    result: Annotated[
        Path | None, typer.Option(help="Write the result to this file and not to stdout.")
    ] = None,
    die_with_parent: Annotated[
        bool, typer.Option(help="End, with all child processes, when stdin closes.")
    ] = False,
) -> None:
    """Run one step of the pipeline and keep it in MLflow.

    A step that was done before with the same inputs is not repeated.
    """
    is_done = threading.Event()
    if die_with_parent:
        _die_with_parent()
        _end_at_once_after(is_done)
    plain_logs()
    from safemerge.errors import DiskFullError, TrackingError
    from safemerge.pipeline.steps import run_step
    from safemerge.storage.atomic import atomic_file

    try:
        outcome = run_step(name, request)
    except (TrackingError, DiskFullError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(EXIT_RETRY) from error
    if os.environ.get("RANK", "0") != "0":
        return  # started by torchrun: the main process answers for all
    if result is None:
        typer.echo(outcome.to_json(), nl=False)
        return
    with atomic_file(result) as partial:
        partial.write_text(outcome.to_json(), encoding="utf-8")
    is_done.set()


def _die_with_parent() -> None:
    """Kill the own process group once stdin closes: its other end is held by the parent alone.

    Even a parent killed by SIGKILL closes it, so that nothing is left holding a device.
    """
    # Otherwise a child process that inherits stdin could swallow what is written to it.
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def wait() -> None:
        while os.read(lifeline, 1024):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _end_at_once_after(done: threading.Event) -> None:
    """Once all is done, end without taking the loaded libraries apart, which takes them more than a second.

    What is registered first runs last: whatever they have to do at exit is done by then.
    """

    def end() -> None:
        if done.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    atexit.register(end)
