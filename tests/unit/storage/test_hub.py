"""From what a user writes to a folder, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from huggingface_hub.errors import HTTPError

from safemerge.errors import AdapterError, CheckpointError, DataError
from safemerge.storage.hub import check_on_hub, named_in_config, resolve

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
"""Commits of a repository on the hub."""


def test_a_folder_is_itself(tmp_path: Path):
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path), "adapter") == tmp_path


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~") == tmp_path


@pytest.mark.parametrize(("kind", "error"), [("adapter", AdapterError), ("model", CheckpointError)])
def test_a_file_is_refused(tmp_path: Path, kind: str, error: type[Exception]):
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=f"expected the folder with the {kind}, got a file"):
        resolve(tmp_path / "file", kind)


@pytest.mark.parametrize(
    "source", ["./missing", "a/b/c", "missing", "/no/such/folder", "../org/name", "org/name@"]
)
def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(source: str):
    neither = "expected a folder or a hub id such as org/name@revision, got neither"
    with pytest.raises(CheckpointError, match=f"^{source}: {neither}: there is no such folder$"):
        resolve(source)
    folder = Path(source).is_absolute()
    with pytest.raises(CheckpointError, match=f"{neither}{': there is no such folder' if folder else ''}$"):
        resolve(source, here=False)


@pytest.mark.parametrize("source", ["models:/bot-lora@champion", "runs:/0a1b/adapter"])
def test_an_address_in_mlflow_is_told_how_to_fetch(source: str):
    with pytest.raises(AdapterError, match=f"fetch it first: .* --artifact-uri {source} --dst-path DIR"):
        resolve(source, "adapter")


def test_a_name_in_a_config_is_no_folder_of_the_working_directory(tmp_path: Path, monkeypatch):
    (tmp_path / "org" / "na--me").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/na--me") == Path("org/na--me")
    assert resolve(str(tmp_path / "org"), here=False) == tmp_path / "org"
    for asked in (partial(resolve, here=False), named_in_config):
        with pytest.raises(CheckpointError, match=r"org/na--me: .* the hub does not give"):
            asked("org/na--me")
    assert named_in_config(str(tmp_path / "org")) == str(tmp_path / "org")
    assert named_in_config("org/name@v1") == "org/name@v1"


def test_a_data_set_of_the_hub_is_not_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_on_hub("org/set")
    (tmp_path / "org" / "set").mkdir(parents=True)
    with pytest.raises(
        DataError, match=rf"org/set: expected a data set of the hub, got {tmp_path}/org/set too"
    ):
        check_on_hub("org/set")
    check_on_hub(str(tmp_path / "org" / "set"))


def test_a_path_object_is_never_a_hub_id():
    with pytest.raises(CheckpointError, match="got neither"):
        resolve(Path("org/name"))


def test_a_name_that_no_hub_allows_is_refused():
    with pytest.raises(CheckpointError, match=r"org/na--me: no such folder here, and the hub does not give"):
        resolve("org/na--me")


@pytest.mark.parametrize("source", ["nobody/nothing", "nobody/nothing@v1.0"])
def test_an_unknown_hub_id_without_a_network_says_so(source: str):
    name = source.replace("@", " at revision ")
    with pytest.raises(CheckpointError, match=f"^{name}: no such folder here, and the hub cannot be reached"):
        resolve(source)


def test_a_download_that_breaks_off_says_so(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise import_module(HTTPError.__module__).ReadError("connection lost\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", broken)
    with pytest.raises(AdapterError, match=r"the hub does not give that adapter: connection lost$"):
        resolve("org/name", "adapter")


@pytest.fixture
def offline(tmp_path: Path):
    """Runs ``resolve`` in a process that has no network but a hub cache; returns what it printed.

    The cache holds two commits of a model and one of an adapter, as huggingface_hub lays them out: a
    snapshot's files are links to blobs.
    """
    cache = tmp_path / "hub"
    for commit, refs in ((OLD, ["v1"]), (NEW, ["main", "refs/pr/1"])):
        _cached(cache, "org--name", commit, refs, {"config.json": "{}", "model.safetensors": commit})
    _cached(cache, "org--lora", NEW, ["main"], {"adapter_config.json": "{}"})
    program = (
        "import json, sys\n"
        "from safemerge.errors import SafemergeError\n"
        "from safemerge.storage.hub import resolve\n"
        "found = []\n"
        "for source in sys.argv[1:]:\n"
        "    kind, _, source = source.partition(':')\n"
        "    try: found.append(str(resolve(source, kind)))\n"
        "    except SafemergeError as error: found.append(f'{type(error).__name__}: {error}')\n"
        "print(json.dumps(found))\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def run(*sources: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, *sources],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout)

    return run, cache


def _cached(cache: Path, name: str, commit: str, refs: list[str], files: dict[str, str]) -> None:
    repository = cache / f"models--{name}"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for ref in refs:
        (repository / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    snapshot.mkdir(parents=True)
    blobs.mkdir(exist_ok=True)
    for number, (file, content) in enumerate(files.items()):
        blob = blobs / f"{commit[:4]}{number}"
        blob.write_text(content)
        (snapshot / file).symlink_to(f"../../blobs/{blob.name}")


def test_a_hub_id_is_taken_from_the_cache_and_else_fails_clearly(offline):
    run, cache = offline
    old, new = (cache / "models--org--name" / "snapshots" / commit for commit in (OLD, NEW))
    unreachable = "no such folder here, and the hub cannot be reached to look for that"
    found = run(
        "model:org/name",
        "model:org/name@v1",
        f"model:org/name@{OLD}",
        f"model:org/name@{NEW}",
        "model:org/name@refs/pr/1",
        "adapter:org/lora",
        "model:org/name@v2",
        f"model:org/name@{'f' * 40}",
        "adapter:org/other@v1",
    )
    assert found == [
        *map(str, (new, old, old, new, new)),
        str(cache / "models--org--lora" / "snapshots" / NEW),
        f"CheckpointError: org/name at revision v2: {unreachable} model",
        f"CheckpointError: org/name at revision {'f' * 40}: {unreachable} model",
        f"AdapterError: org/other at revision v1: {unreachable} adapter",
    ]
    assert (old / "model.safetensors").read_text() == OLD
