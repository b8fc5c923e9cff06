"""``safemerge rollback``: take a champion back."""

from __future__ import annotations

from typing import Annotated

import typer

from safemerge.cli.flags import AsJson, default, epilog

EPILOG = epilog(
    'safemerge rollback support-bot --reason "answers in the wrong language" --dry-run',
    'safemerge rollback support-bot --reason "answers in the wrong language"',
    'safemerge rollback support-bot --to 12 --reason "13 and 14 leak prompts" --by alice --json',
    "Let deployments follow that have the champion's asset as their schedule:",
    'safemerge rollback support-bot --reason "leaks prompts" --airflow https://airflow.example.org',
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EPILOG, rich_help_panel="Pipeline")(rollback)


def rollback(
    name: Annotated[str, typer.Argument(help="Registered model in MLflow.", show_default=False)],
    reason: Annotated[str, typer.Option(help="Why; kept on both versions.", show_default=False)],
    to: Annotated[
        int | None,
        typer.Option(
            help=f"Version to go back to: one that has been the champion. {default('the one before')}",
            show_default=False,
            min=1,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help=f"Who wants it. {default('your user name')}", show_default=False),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="Address of MLflow.", envvar="MLFLOW_TRACKING_URI", show_default=False),
    ] = None,
    airflow: Annotated[
        str | None,
        typer.Option(
            help="Address of an Airflow to tell: its asset NAME@champion gets an event. AIRFLOW_TOKEN, or "
            "AIRFLOW_USER and AIRFLOW_PASSWORD, say who you are there.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the alias champion of a model back to an earlier champion, and record who wanted it and why.

    An adapter that was taken back is not promoted again by any run until a rollback to its version puts it
    back. Deployments that follow the alias see the change at once; nothing is deleted.
    """
    from safemerge.pipeline.rolling_back import rollback as roll_back

    done = roll_back(
        name, reason=reason, to=to, by=by, dry_run=dry_run, tracking_uri=tracking_uri, airflow=airflow
    )
    if as_json:
        typer.echo(done.to_json(), nl=False)
        return
    would = "would become" if dry_run else "is"
    typer.echo(f"models:/{name}/{done.to_version} {would} the champion (adapter {_short(done.to_adapter)})")
    instead = f"instead of models:/{name}/{done.from_version} (adapter {_short(done.from_adapter)})"
    typer.echo(f"{instead}, for {done.by}: {done.reason}")
    if airflow:
        from safemerge.tracking.champions import champion_of

        typer.echo(f"{airflow} {'would be' if dry_run else 'was'} told: asset {champion_of(name)}")


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "unknown"
