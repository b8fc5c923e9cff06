"""The command line: a typer app and one module per command."""
