"""A checkpoint with updates folded into its weights: planned from the headers, written shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from safemerge.core.methods.base import Update
from safemerge.core.module_names import natural_order
from safemerge.core.weights import updated_weight
from safemerge.errors import MismatchError
from safemerge.storage.architectures import HEADS, INPUT_EMBEDDINGS, is_tied
from safemerge.storage.checkpoints import SINGLE_FILE, Checkpoint
from safemerge.storage.model_files import companion_files, copy_companions, write_config, write_index
from safemerge.storage.shards import FLOAT_DTYPES, Advance, Rewrite, plan_shard
from safemerge.storage.weight_places import Part, WeightPlace

_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
"""Ends of the names of model classes that have an output embedding."""
_DEFAULT_HEAD = "lm_head"


@dataclass(frozen=True)
class WeightChanges:
    """What is to become of a model's weights."""

    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Paths of modules with an update to its (d_out, d_in)."""
    update: Callable[[str], Update] = dict[str, Update]().__getitem__
    """Makes the update of a module, any number of times."""
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    """Paths of modules to the m of DoRA, (d_out,)."""
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    """Names of parameters, such as ``lm_head.weight``, to tensors that replace the checkpoint's.

    A module's update, where there is one as well, is to that tensor.
    """


class _Patch(NamedTuple):
    """Where rows of a module's update go."""

    module: str
    part: Part
    rows: slice


class FoldedCheckpoint:
    """A changed copy of a checkpoint, not yet written.

    Where input and output embedding are one tensor and only one of them changes, or both do
    differently, the output embedding gets a tensor of its own and the config says so.

    Args:
        checkpoint: The model's.
        changes: What is to become of its weights.
        dtype: Store all float tensors so, in the words of torch, such as ``bfloat16``; None keeps each
            as it is.

    Raises:
        MismatchError: an update or a saved tensor does not fit; all are named.
        CheckpointError: a module is missing.
    """

    def __init__(self, checkpoint: Checkpoint, changes: WeightChanges, dtype: str | None = None) -> None:
        self._source, self._changes, self._dtype = checkpoint.folder, changes, dtype
        self._places = _Places(checkpoint, changes)
        self._update = functools.lru_cache(maxsize=1)(changes.update)
        names = {str(torch_dtype).removeprefix("torch."): name for name, torch_dtype in FLOAT_DTYPES.items()}
        files = sorted({entry.file for entry in checkpoint.tensors.values()})
        self._shards = [
            plan_shard(
                file,
                dtype=None if dtype is None else names[dtype],
                copies={
                    new: existing
                    for new, existing in self._places.copies.items()
                    if checkpoint.tensors[existing].file == file
                },
            )
            for file in files
        ]

    @property
    def changed(self) -> tuple[str, ...]:
        """Tensors that are not the checkpoint's own, in natural order."""
        places = self._places
        return tuple(sorted({*places.patches, *places.saved, *places.copies}, key=natural_order))

    @property
    def untied(self) -> bool:
        """Whether the output embedding gets weights of its own."""
        return self._places.untied

    @property
    def n_bytes(self) -> int:
        """Size of the weight files."""
        return sum(shard.n_bytes for shard in self._shards)

    @property
    def tensor_bytes(self) -> int:
        """Size of the tensors: what ``advance`` of :meth:`write` is told of in all."""
        return sum(shard.tensor_bytes for shard in self._shards)

    @property
    def needed_bytes(self) -> int:
        """Size of all files."""
        return self.n_bytes + sum(path.stat().st_size for path in companion_files(self._source))

    def write(self, folder: Path, advance: Advance | None = None) -> None:
        """Write weights, config, tokenizer and what else makes it a model into an existing folder.

        Raises:
            CheckpointError: a source file cannot be read any more.
            NonFiniteError: a changed or cast tensor holds NaN or infinity; it is named.
        """
        copy_companions(self._source, folder)
        write_config(self._source, folder, dtype=self._dtype, untied=self.untied)
        for shard in self._shards:
            shard.write(folder / shard.source.name, self._rewrite, advance)
        if not (self._source / SINGLE_FILE).exists():
            write_index(self._source, folder, copies=self._places.copies, tensor_bytes=self.tensor_bytes)

    def _rewrite(self, name: str) -> Rewrite | None:
        patches, saved = self._places.patches.get(name, []), self._places.saved.get(name)
        if saved is None and not patches:
            return None
        rescaled = any(
            patch.part.transposed and patch.module in self._changes.magnitudes for patch in patches
        )
        return Rewrite(functools.partial(self._changed, patches, saved), whole=rescaled)

    def _changed(self, patches: list[_Patch], saved: Tensor | None, block: Tensor, first: int) -> Tensor:
        if saved is not None:
            block = saved.reshape(saved.shape or (1,))[first : first + len(block)].to(block.dtype)
        for patch in patches:
            expert = patch.part.expert
            if expert is None:
                block = self._folded(patch, block, first)
            elif first <= expert < first + len(block):
                block[expert - first] = self._folded(patch, block[expert - first], 0)
        return block

    def _folded(self, patch: _Patch, block: Tensor, first: int) -> Tensor:
        """Rows of a stored matrix, from the one numbered ``first`` on, with the update folded in."""
        update, magnitude = self._update(patch.module), self._changes.magnitudes.get(patch.module)
        if patch.part.transposed:
            columns = slice(first, first + len(block))
            return updated_weight(block.T, update, rows=patch.rows, columns=columns, magnitude=magnitude).T
        start = patch.rows.start + first
        return updated_weight(block, update, rows=slice(start, start + len(block)), magnitude=magnitude)


class _Places:
    """Which stored tensors change, and how: the inverse of where the modules' weights lie."""

    def __init__(self, checkpoint: Checkpoint, changes: WeightChanges) -> None:
        self.patches: dict[str, list[_Patch]] = {}
        self.saved: dict[str, Tensor] = {}
        self.copies: dict[str, str] = {}
        """New tensors to the existing ones that they start from."""
        self.untied = False
        parameters = {name: name.rpartition(".")[0] for name in changes.saved}
        places = checkpoint.locate({*changes.shapes, *parameters.values()})
        self._untie(checkpoint, places)
        wrong = []
        for module, expected in changes.shapes.items():
            got = checkpoint.shape(places[module])
            if expected != got:
                wrong.append(f"{module} (expected {expected} as of the update, got {got})")
            self._add_patches(checkpoint, module, places[module])
        for name, module in parameters.items():
            stored = places[module][0].name.removesuffix("weight") + name.rpartition(".")[2]
            entry, tensor = checkpoint.tensors.get(stored), changes.saved[name]
            if entry is None or entry.shape != tuple(tensor.shape):
                got_shape = "no such tensor" if entry is None else entry.shape
                wrong.append(
                    f"{name} (expected {tuple(tensor.shape)} as of the saved tensor, got {got_shape})"
                )
            self.saved[self._own_name(module, stored)] = tensor
        if wrong:
            raise MismatchError(f"{checkpoint.folder}: the adapter does not fit: {'; '.join(sorted(wrong))}")

    def _untie(self, checkpoint: Checkpoint, places: Mapping[str, WeightPlace]) -> None:
        """Give a tied output embedding a tensor of its own where it, or the input embedding, is to change."""
        heads = [module for module in places if _last(module) in HEADS]
        embeddings = [module for module in places if _last(module) in INPUT_EMBEDDINGS]
        generates = str((checkpoint.config.get("architectures") or [""])[0]).endswith(_GENERATORS)
        if not is_tied(checkpoint.config) or not (heads or (embeddings and generates)):
            return
        self.untied = True
        if not any(_last(name.removesuffix(".weight")) in HEADS for name in checkpoint.tensors):
            head = heads[0] if heads else _DEFAULT_HEAD
            self.copies[f"{head}.weight"] = places[(heads or embeddings)[0]][0].name

    def _own_name(self, module: str, stored: str) -> str:
        """Where the weight of a module is to be stored, once a tied output embedding has its own."""
        return own if (own := f"{module}.weight") in self.copies else stored

    def _add_patches(self, checkpoint: Checkpoint, module: str, place: WeightPlace) -> None:
        start = 0
        for part in place:
            d_out = checkpoint.shape((part,))[0]
            patch = _Patch(module, part, slice(start, start + d_out))
            self.patches.setdefault(self._own_name(module, part.name), []).append(patch)
            start += d_out


def _last(path: str) -> str:
    return path.rpartition(".")[2]
