"""``safemerge schema``: JSON Schemas of the config files, for editors that complete and check them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from safemerge.cli.flags import epilog

EPILOG = epilog(
    "safemerge schema merge > merge.schema.json",
    "Then begin the config file with: # yaml-language-server: $schema=merge.schema.json",
)


class Schema(StrEnum):
    """Config files that have a schema."""

    MERGE = "merge"
    SWEEP = "sweep"
    PIPELINE = "pipeline"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="schema", epilog=EPILOG)(schema)


def schema(
    file: Annotated[Schema, typer.Argument(help="Which config file.", show_default=False)],
) -> None:
    """Print the JSON Schema of a config file: of merge, sweep or a pipeline."""
    import json

    from safemerge.config import load

    schemas = {
        Schema.MERGE: load.merge_json_schema,
        Schema.SWEEP: load.sweep_json_schema,
        Schema.PIPELINE: load.pipeline_json_schema,
    }
    typer.echo(json.dumps(schemas[file](), indent=2, ensure_ascii=False))
