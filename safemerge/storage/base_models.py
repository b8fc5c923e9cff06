"""Whether the base model that an adapter names is the model at hand, as far as names can tell.

Hub ids tell models apart. Folders do not, since they are moved, and downloaded from a hub id.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemerge.errors import MismatchError
from safemerge.storage.hub import hub_id


def base_of(config: Mapping[str, Any]) -> str | None:
    """The model that an adapter_config.json names as the adapter's own."""
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def check_same_base(configs: Mapping[str, Mapping[str, Any]], aligned_model: str | Path) -> tuple[str, ...]:
    """Check that adapters were trained on one model, the aligned one.

    Args:
        configs: What an adapter is called, such as ``task adapter``, to its adapter_config.json.
        aligned_model: Folder or hub id.

    Returns:
        A warning for each adapter that names another model in a way that proves nothing.

    Raises:
        MismatchError: hub ids differ; all are named.
    """
    if got := differing_ids({role: base_of(config) for role, config in configs.items()}, aligned_model):
        raise MismatchError(
            f"expected adapters of one base model, the aligned one, got {got}; where these are one model, "
            "let base_model_name_or_path in adapter_config.json say so"
        )
    doubts = (base_model_doubt(f"the {role}", config, aligned_model) for role, config in configs.items())
    return tuple(doubt for doubt in doubts if doubt)


def differing_ids(bases: Mapping[str, str | None], aligned_model: str | Path | None) -> str | None:
    """The hub ids among base models, and whose they are, where they are not all one; None where they are."""
    named = {**bases, "aligned model": aligned_model}
    ids = {role: name for role, base in named.items() if base and (name := hub_id(base))}
    if len(set(ids.values())) < 2:
        return None
    return ", ".join(f"{named[role]} ({role})" for role in ids)


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
    base = base_of(config)
    if base is None or _names(base) & _names(aligned_model):
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
