"""``safemerge merge``: repair a fine-tuned LoRA adapter with a safety adapter."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add ``merge`` to the command line."""
    app.command(name="merge")(merge)


def merge() -> None:
    """Merge a task adapter with a safety adapter where fine-tuning left the safe subspace."""
    raise typer.Exit
