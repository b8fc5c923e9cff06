"""``safemerge schema``: JSON Schemas of the files, for editors that complete and check them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from safemerge.cli.flags import epilog

EPILOG = epilog(
    "safemerge schema merge > merge.schema.json",
    "Then begin the config file with: # yaml-language-server: $schema=merge.schema.json",
)


Kind = Literal["pipeline", "recipe", "merge", "sweep", "policy", "suite", "report"]
"""Those of :data:`safemerge.config.schemas.MODELS`, which loads pydantic."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="schema", epilog=EPILOG)(schema)


def schema(
    file: Annotated[Kind, typer.Argument(help="Which kind of file.", show_default=False)],
) -> None:
    """Print the JSON Schema of a kind of file, for editors and for programs that read reports."""
    import json

    from safemerge.config.schemas import json_schema

    typer.echo(json.dumps(json_schema(file), indent=2, ensure_ascii=False))
