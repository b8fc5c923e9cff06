"""The stack that the tests here run against: built, started and taken down once.

Not part of ``make test``: it needs Docker, and takes minutes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import IMAGES, Stack, run
from tests.conftest import TinyPair, write_tiny_pipeline

SCREEN = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The last screen: what was seen, with times and sizes."""
    if lines := config.stash.get(SCREEN, []):
        terminalreporter.section("Compose")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the workers see as ``/pipelines``; readable for their user, as it must be."""
    folder = tmp_path_factory.mktemp("compose") / "pipelines"
    folder.mkdir()
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def recipes(pipelines: Path) -> Path:
    """The folder that Airflow sees as ``/recipes``; empty, so that recipes are dropped into it."""
    folder = pipelines.with_name("recipes")
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pipelines: Path, recipes: Path, request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """All services, healthy; removed with their volumes at the end."""
    mounted = {"PIPELINES": str(pipelines), "RECIPES": str(recipes)}
    stack = Stack(tmp_path_factory.mktemp("env"), mounted)
    stack.seen = request.config.stash.setdefault(SCREEN, [])
    stack.build()
    sizes = stack.image_bytes()
    stack.seen.append(
        f"built in {stack.build_s:.0f} s: "
        + ", ".join(f"{name} {sizes[name] / 1e9:.2f} GB" for name in IMAGES)
        + f"; {sizes['together'] / 1e9:.2f} GB together, shared layers counted once"
    )
    try:
        stack.start()
        stack.seen.append(f"all services healthy after {stack.healthy_s:.0f} s")
        yield stack
    finally:
        stack.remove()
        stack.seen.append("taken down: no container, volume or network is left")


@pytest.fixture(scope="session")
def tiny_config(tiny_pair: TinyPair, pipelines: Path) -> str:
    """The tiny pipeline with its models, mounted; the path of its file as the workers see it."""
    folder = pipelines / "tiny"
    models = {role: folder / role for role in tiny_pair._fields}
    for role, model in tiny_pair._asdict().items():
        shutil.copytree(model, models[role])
    pipeline = write_tiny_pipeline(folder, TinyPair(**models))
    for file in folder.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(str(pipelines), "/pipelines"), encoding="utf-8")
    run("chmod", "-R", "a+rX", str(folder))  # safetensors writes for the owner alone
    return f"/pipelines/tiny/{pipeline.config.name}"
