"""From what a user writes (a folder, or a hub id) to a folder on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safemerge.config.base import HUB_ID, MLFLOW_ADDRESSES
from safemerge.errors import AdapterError, CheckpointError, DataError

Kind = Literal["adapter", "model"]

MODEL_FILES = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What belongs to a model beside its weights: configs, tokenizer, chat template."""

DOCUMENT_FILES = ("README.md", "LICEN[CS]E*", "COPYING*", "NOTICE*", "*POLICY*")
"""What tells of a model and its terms; no program reads it."""

# No *.bin and no *.pt: pickled weights are never fetched.
_PATTERNS = {
    "adapter": ["adapter_config.json", "adapter_model.safetensors"],
    "model": ["*.safetensors", *MODEL_FILES, *DOCUMENT_FILES],
}


def hub_id(source: str | Path) -> str | None:
    """The hub id without revision, in the lower case that the hub compares by; None of what is a folder."""
    if isinstance(source, Path) or Path(source).expanduser().is_dir() or not HUB_ID.fullmatch(source):
        return None
    return source.partition("@")[0].lower()


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: errors of the system, of values, and of its HTTP client.

    That is httpx or httpx2, by its version.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return HTTPError, OSError, ValueError


def resolve(source: str | Path, kind: Kind = "model", *, here: bool = True) -> Path:
    """The local folder of an adapter or a model; a hub id is downloaded once and cached.

    Args:
        source: A folder, or a hub id ``org/name``, with ``@revision`` where a commit, tag or
            branch is meant.
        kind: What is expected there: decides which files are fetched and how errors are named.
        here: Whether relative folders of the working directory count. Those in a config file do not:
            :mod:`safemerge.config.load` made its folders absolute, and what is left is a hub id.

    Returns:
        The folder.

    Raises:
        CheckpointError: no such folder, or the hub does not give the model.
        AdapterError: the same of an adapter.
    """
    error_class = AdapterError if kind == "adapter" else CheckpointError
    folder = Path(source).expanduser()
    counts = here or folder.is_absolute()
    if counts and folder.is_dir():
        return folder
    if counts and folder.exists():
        raise error_class(f"{source}: expected the folder with the {kind}, got a file")
    if str(source).startswith(MLFLOW_ADDRESSES):
        raise error_class(
            f"{source}: expected a folder or a hub id, got an address in MLflow; fetch it first: "
            f"mlflow artifacts download --artifact-uri {source} --dst-path DIR"
        )
    if not isinstance(source, str) or not HUB_ID.fullmatch(source):
        found = ": there is no such folder" if counts else ""
        raise error_class(
            f"{source}: expected a folder or a hub id such as org/name@revision, got neither{found}"
        )
    name, _, revision = source.partition("@")
    return _download(name, revision or None, kind, error_class)


def named_in_config(source: str, kind: Kind = "model") -> str:
    """The same source, such that whoever looks in the working directory, too, finds what a config file means.

    A hub id stays one. Where something in the working directory is called so, it is the folder that the hub's
    was downloaded to.

    Args:
        source: As :mod:`safemerge.config.load` reads it: an absolute path or a hub id.
        kind: What is expected there.

    Raises:
        CheckpointError, AdapterError: as of :func:`resolve`.
    """
    mistaken = not Path(source).is_absolute() and Path(source).exists()
    return str(resolve(source, kind, here=False)) if mistaken else source


def check_on_hub(dataset: str) -> None:
    """Check that the library ``datasets`` will ask the hub for a data set that is called by no absolute path.

    Raises:
        DataError: something in the working directory is called so, which it would read in place of the hub's.
    """
    if not Path(dataset).is_absolute() and Path(dataset).exists():
        raise DataError(
            f"{dataset}: expected a data set of the hub, got {Path(dataset).resolve()} too, which would be "
            "read in its place: start in another folder, or name that by its absolute path"
        )


def _download(
    name: str, revision: str | None, kind: Kind, error_class: type[AdapterError] | type[CheckpointError]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted = f"{name} at revision {revision}" if revision else name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS[kind]))
    except LocalEntryNotFoundError as error:
        raise error_class(
            f"{wanted}: no such folder here, and the hub cannot be reached to look for that {kind}"
        ) from error
    except hub_errors() as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise error_class(
            f"{wanted}: no such folder here, and the hub does not give that {kind}: {reason}"
        ) from error
