"""Whether the base model that an adapter names is the model at hand, as far as names can tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemerge.storage.hub import hub_id


def base_model_doubt(whose: str, config: Mapping[str, Any], aligned_model: str | Path) -> str | None:
    """What to say where an adapter names another base model than the aligned one; None where it does not.

    Folders are moved and hub ids downloaded into folders of any name, so that this is no proof: only the
    last part of the names is compared, and of folders in the hub's cache the id that they were fetched by.

    Args:
        whose: Which adapter, for the message.
        config: adapter_config.json.
        aligned_model: Folder or hub id.

    >>> config = {"base_model_name_or_path": "org/Model-7B"}
    >>> base_model_doubt("the task adapter", config, "/models/model-7b")
    >>> base_model_doubt("the task adapter", config, "/models/other")
    'the task adapter names org/Model-7B as its base model, not /models/other: make sure that they are one'
    """
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base or _names(base) & _names(aligned_model):
        return None
    return f"{whose} names {base} as its base model, not {aligned_model}: make sure that they are one"


def _names(source: str | Path) -> set[str]:
    """The last part of an id or a folder's path, and of a folder in the hub's cache that of its id."""
    if identity := hub_id(source):
        return {identity.rpartition("/")[2]}
    path = Path(source).expanduser()
    # As written and resolved, as folders may be links.
    named = {path.name, path.resolve().name}
    named |= {part.rpartition("--")[2] for part in path.parts if part.startswith("models--")}
    return {name.lower() for name in named if name}
