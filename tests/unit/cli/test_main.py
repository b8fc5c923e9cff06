"""The frame of the command line: quick, and every failure on one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from safemerge import __version__
from safemerge.cli.main import CleanErrors, app
from safemerge.errors import CheckpointError

HEAVY = (
    "torch",
    "transformers",
    "mlflow",
    "plotly",
    "peft",
    "trl",
    "lm_eval",
    "scipy",
    "numpy",
    "pandas",
    "airflow",
)


def _run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safemerge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_a_locale_that_lacks_our_characters_ends_no_command() -> None:
    helped = _run("merge", "--help", env={**os.environ, "PYTHONIOENCODING": "latin-1"}, encoding="latin-1")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert r"\u03b1·\u0394W_task" in helped.stdout  # alpha and Delta; the dot is of Latin-1


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["merge", "--help"], ["sweep", "--help"], ["schema", "merge"], ["--version"]],
    ids=" ".join,
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from safemerge.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        f"sys.exit(', '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == ""
    assert done.stdout.strip()


def test_python_m_safemerge_is_the_command_line() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout) == (0, f"safemerge {__version__}\n")


@pytest.mark.parametrize(("given", "bars"), [(None, False), ("", True)])
def test_other_libraries_draw_no_bars_into_a_log_unless_asked(given: str | None, bars: bool) -> None:
    code = """
from safemerge.cli import main
main.app = lambda prog_name: list(__import__("tqdm").tqdm(range(3), desc="Building"))
main.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment |= {} if given is None else {"TQDM_DISABLE": given}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert ("Building" in done.stderr) is bars


def test_a_fault_of_ours_is_not_taken_for_a_block_of_the_gate() -> None:
    """Python ends with 1 after an exception that nobody foresaw, and so would the command line."""
    code = "from safemerge.cli import main; main.app = lambda prog_name: 1 / 0; main.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_every_command_has_help_and_no_two_share_a_name() -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert "merge" in names
    assert len(set(names)) == len(names)
    for name in names:
        assert CliRunner().invoke(app, [name.replace("_", "-"), "--help"]).exit_code == 0


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands] + ["demo"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_the_exit_codes_and_shows_no_markup(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "-h"], env={"COLUMNS": "100"}).output
    assert "Exit code: 0 " in shown
    assert "Example" in shown
    assert [mark for mark in ("**", "``", "[bold]", "[dim]", "[/") if mark in shown] == []


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"step", "schema", "demo"}))
def test_commands_that_report_offer_json(name: str) -> None:
    assert "--json" in CliRunner().invoke(app, [name, "--help"]).output


def test_every_exit_code_stands_in_one_place() -> None:
    from safemerge.cli import diff, gate, main, step
    from safemerge.errors import EXIT_ERROR

    verdicts = gate.EXIT_CODES.values()
    ends = (main.EXIT_FAULT, main.EXIT_INTERRUPTED)
    codes = (*verdicts, EXIT_ERROR, diff.EXIT_DIFFERENT, step.EXIT_RETRY, *ends)
    assert len(set(codes)) == len(codes)
    described = main.__doc__.partition("Exit codes")[2]
    assert all(f" {code} " in described for code in codes)


def test_a_mistyped_command_is_a_usage_error_with_the_nearest_name() -> None:
    result = CliRunner().invoke(app, ["merg"])
    assert result.exit_code == 2
    assert "Did you mean 'merge'" in result.output


def test_nothing_typed_shows_the_help() -> None:
    assert "Usage: safemerge" in _run().stdout + _run().stderr


def test_shell_completion_is_offered() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def _failing(error: BaseException) -> typer.Typer:
    """The same frame around a command that fails."""
    frame = typer.Typer(cls=CleanErrors)

    @frame.callback()
    def root(debug: bool = typer.Option(False, "--debug", envvar="SAFEMERGE_DEBUG")) -> None:
        pass

    @frame.command()
    def fail() -> None:
        raise error

    return frame


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("a/b: expected\n  one file, got none"), "error: a/b: expected one file, got none\n"),
        (PermissionError(13, "Permission denied", "out"), "error: [Errno 13] Permission denied: 'out'\n"),
    ],
)
def test_an_expected_failure_is_one_line_on_stderr(error: Exception, line: str) -> None:
    result = CliRunner().invoke(_failing(error), ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (4, "", line)


@pytest.mark.parametrize(("arguments", "env"), [(["--debug"], {}), ([], {"SAFEMERGE_DEBUG": "1"})])
def test_debugging_shows_the_traceback_and_keeps_the_exit_code(
    arguments: list[str], env: dict[str, str]
) -> None:
    result = CliRunner().invoke(_failing(CheckpointError("broken")), [*arguments, "fail"], env=env)
    assert result.exit_code == 4
    assert "Traceback" in result.stderr
    assert "CheckpointError: broken" in result.stderr


def test_an_error_that_nobody_foresaw_is_not_hidden() -> None:
    result = CliRunner().invoke(_failing(ZeroDivisionError()), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_exits_with_130() -> None:
    result = CliRunner().invoke(_failing(KeyboardInterrupt()), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_an_interrupt_says_what_is_kept_where_it_is_known() -> None:
    result = CliRunner().invoke(_failing(KeyboardInterrupt("eval.work keeps it")), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "interrupted: eval.work keeps it\n")


def test_a_reader_that_leaves_is_no_failure_of_ours() -> None:
    result = CliRunner().invoke(_failing(BrokenPipeError(32, "Broken pipe")), ["fail"])
    assert "error:" not in result.stderr
