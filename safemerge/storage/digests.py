"""sha256 of tensors, files and folders: what tells whether two inputs are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.records import json_digest

if TYPE_CHECKING:
    from torch import Tensor


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the names (relative, hidden ones left out) and bytes of all files in a folder."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    return json_digest({path.as_posix(): file_digest(folder / path) for path in shown})


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes in memory order, whatever its dtype."""
    import torch

    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw).hexdigest()
