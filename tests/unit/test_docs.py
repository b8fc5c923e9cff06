"""What documentation and README say can be done: links lead somewhere, commands parse, files validate."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

import safemerge
from safemerge.cli.main import app
from safemerge.config import load
from safemerge.config.commands import MergeFileConfig, SweepFileConfig
from safemerge.config.load import load_merge_file, load_policy, load_recipe, load_sweep_file
from safemerge.config.recipes import RecipeConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
USAGE_ERROR = typer.BadParameter.__mro__[1]
"""What typer raises on words that it does not take."""
EXAMPLE = "support-bot"
"""The recipe that the documentation explains; what other blocks show are parts of such a file."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
            if fence["language"] == language:
                found.append(Block(page, language, _included(textwrap.dedent(fence["text"]))))
    return found


def _included(text: str) -> str:
    """The text with the files that it includes."""
    return re.sub(r'--8<-- "(.+)"', lambda one: (ROOT / one[1]).read_text(encoding="utf-8"), text)


# --- commands ----------------------------------------------------------------------


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every ``safemerge …`` line, with where it stands."""
    for block in blocks("sh"):
        joined = block.text.replace("\\\n", " ")
        for line in joined.splitlines():
            if line.startswith("safemerge "):
                words = shlex.split(line, comments=True)
                end = next((n for n, word in enumerate(words) if word in (">", "|", "&&")), len(words))
                yield f"{block.page.name}: {line}", words[1:end]


def test_every_command_parses() -> None:
    group = typer.main.get_command(app)
    found = list(commands())
    assert len(found) > 20
    wrong = [f"{where}: {problem}" for where, words in found if (problem := _problem(group, words))]
    assert not wrong, "\n".join(wrong)


def _problem(command: Any, words: list[str]) -> str | None:
    """Why the words are none that the command takes; nothing is run."""
    try:
        while getattr(command, "commands", None):
            # Folders that the shell would name are not there.
            context = command.make_context("safemerge", list(words), resilient_parsing=True)
            name, *words = [*context._protected_args, *context.args]
            command = command.commands[name]
        parser = command.make_parser(typer.Context(command))
        values, rest, _ = parser.parse_args(list(words))
        missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, (), [])]
        return f"missing {missing}" if missing else (f"left over {rest}" if rest else None)
    except (USAGE_ERROR, KeyError) as error:
        return f"{type(error).__name__}: {error}"


def test_a_wrong_command_is_noticed() -> None:
    group = typer.main.get_command(app)
    assert "No such option" in str(_problem(group, ["merge", "--no-such-flag"]))
    assert "KeyError" in str(_problem(group, ["nothing"]))
    assert "missing" in str(_problem(group, ["score", "--task-adapter", "a"]))


# --- files -------------------------------------------------------------------------


def test_every_yaml_block_validates(tmp_path: Path) -> None:
    found = blocks("yaml")
    (example,) = (_read(b.text) for b in found if f"name: {EXAMPLE}\ndescription" in b.text)
    assert len(found) > 5
    for number, block in enumerate(found):
        _validate(block, example, tmp_path / str(number))


def _read(text: str) -> Any:
    """As safemerge reads it: `on` is a text."""
    return yaml.load(text, Loader=load._Loader)  # noqa: S506 (a safe one)


def _validate(block: Block, example: dict[str, Any], folder: Path) -> None:
    data = _read(block.text)
    file = folder / f"{EXAMPLE}.yaml"
    folder.mkdir()
    file.write_text(block.text, encoding="utf-8")
    if "max_harmful_rate" in data:
        load_policy(file)
    elif "task_adapter" in data:
        load_sweep_file(file) if "grid" in data else load_merge_file(file)
    elif data.keys() <= RecipeConfig.model_fields.keys():
        # A whole recipe, or a part of one.
        file.write_text(yaml.safe_dump(_over(example, data)), encoding="utf-8")
        load_recipe(file, any_name=True)
    else:
        known = {*RecipeConfig.model_fields, *MergeFileConfig.model_fields, *SweepFileConfig.model_fields}
        pytest.fail(f"{block.page}: no file of safemerge has {sorted(data.keys() - known)}")


def _over(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """The part laid over a whole; lists, judges and a merge, whose keys exclude each other, are replaced."""
    merged = dict(base)
    for key, value in part.items():
        deeper = (
            isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in ("merge", "judge")
        )
        merged[key] = _over(merged[key], value) if deeper else value
    return merged


def test_metrics_are_among_those_that_airflow_sends() -> None:
    (airflow,) = importlib.util.find_spec("airflow").submodule_search_locations  # type: ignore[union-attr]
    template = Path(airflow, "_shared", "observability", "metrics", "metrics_template.yaml")
    sent = {one["name"] for one in yaml.safe_load(template.read_text(encoding="utf-8"))["metrics"]}
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = page.partition("| metric |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])}
    assert len(named) > 10
    assert named - {"task_id", "state", "gpu_pool"} <= sent


# --- Python ------------------------------------------------------------------------


def test_every_python_block_names_what_is_there_and_runs_without_files() -> None:
    for block in blocks("python"):
        code = compile(block.text, str(block.page), "exec")
        names = re.findall(r"^from (safemerge\S*) import ([\w, ]+)", block.text, re.M)
        for module, imported in names:
            offered = safemerge.__all__ if module == "safemerge" else dir(_module(module))
            assert set(imported.strip().split(", ")) <= set(offered), block.page
        if "draw(" in block.text or "def may_ship" in block.text:
            exec(code, {})  # noqa: S102 (our own pages)


def _module(name: str) -> object:
    return importlib.import_module(name)


# --- links -------------------------------------------------------------------------


def test_site_builds_with_every_link_and_anchor(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    site = tmp_path / "site"
    built = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--site-dir",
            str(site),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    page = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert not loaded, "pages load nothing from elsewhere"


def test_links_of_the_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith(("http", "#"))]
    missing = [target for target in targets if not (ROOT / target.partition("#")[0]).exists()]
    assert not missing
