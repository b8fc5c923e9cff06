"""``safemerge demo``: the whole pipeline on a small real model, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safemerge.cli.flags import epilog
from safemerge.cli.interrupts import resumable
from safemerge.cli.logs import plain_logs
from safemerge.errors import ConfigError

EPILOG = epilog(
    "Run it; the first time takes about a quarter of an hour on two cores:",
    "safemerge demo",
    "Train the task adapter anew, keep the rest:",
    "safemerge demo --seed 1",
    "Look around in Airflow and MLflow:",
    "safemerge demo up",
    "safemerge demo down",
)

DEFAULT_HOME = Path("var/demo")

Home = Annotated[Path, typer.Option("--home", help="The demo's folder: models, databases, logs.")]
SameHome = Annotated[
    Path | None, typer.Option("--home", help="The demo's folder.", show_default=str(DEFAULT_HOME))
]
MlflowPort = Annotated[int, typer.Option(help="Port of MLflow; another free one where it is taken.")]
AirflowPort = Annotated[int, typer.Option(help="Port of Airflow; another free one where it is taken.")]

app = typer.Typer(
    epilog=EPILOG, help="Run the whole pipeline on a small real model.", rich_markup_mode="rich"
)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="demo", rich_help_panel="Demo")


@app.callback(invoke_without_command=True)
def demo(
    context: typer.Context,
    home: Home = DEFAULT_HOME,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the task adapter's training, for another run.")
    ] = None,
    mlflow_port: MlflowPort = 5000,
) -> None:
    """Fine-tune, repair, evaluate, gate and record a small real model, through Airflow and MLflow."""
    from safemerge.demo.services import DemoHome, pass_by_proxies

    pass_by_proxies()
    context.obj = home
    if context.invoked_subcommand is not None:
        return
    plain_logs()
    from rich.console import Console

    from safemerge.demo.run import run_demo

    with resumable(home):
        run_demo(DemoHome(home), Console(), seed=seed, mlflow_port=mlflow_port)


@app.command()
def up(
    context: typer.Context,
    home: SameHome = None,
    mlflow_port: MlflowPort = 5000,
    airflow_port: AirflowPort = 8080,
) -> None:
    """Serve the demo's Airflow and MLflow on 127.0.0.1."""
    from safemerge.demo.services import DemoHome, airflow_password, start_airflow, start_mlflow

    folder = DemoHome(home or context.obj)
    if not folder.pipeline.exists():
        typer.echo(
            f"{folder.root} holds no demo yet, which safemerge demo makes: nothing to see but your recipes"
        )
    typer.echo("MLflow starts (about half a minute) …")
    mlflow_url = start_mlflow(folder, mlflow_port)
    typer.echo(f"MLflow:  {mlflow_url}")
    typer.echo("Airflow starts (about a minute) …")
    airflow_url = start_airflow(folder, mlflow_url, airflow_port)
    typer.echo(f"Airflow: {airflow_url}")
    if login := airflow_password(folder):
        typer.echo(f"         user {login[0]}, password {login[1]}")
    typer.echo(f"Recipes: each YAML file in {folder.recipes} is a DAG")
    is_default = folder.root == DEFAULT_HOME.resolve()
    typer.echo(f"Stop both: {'make down' if is_default else f'safemerge demo down --home {folder.root}'}")


@app.command()
def down(context: typer.Context, home: SameHome = None) -> None:
    """Stop what safemerge demo up started."""
    from safemerge.demo.services import DemoHome, airflow_service, mlflow_service

    root: Path = home or context.obj
    if not root.is_dir():
        raise ConfigError(f"{root}: expected the demo's folder, got no such folder")
    folder = DemoHome(root)
    for service in (airflow_service(folder), mlflow_service(folder)):
        stopped = service.stop()
        typer.echo(f"{service.name}: {'stopped' if stopped else 'was not running'}")
