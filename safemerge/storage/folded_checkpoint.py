"""A checkpoint with updates folded into its weights: planned from the headers, written shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from safemerge.core.methods.base import Update
from safemerge.core.scoring import natural_order
from safemerge.core.weights import updated_weight
from safemerge.errors import MismatchError
from safemerge.storage.checkpoints import SINGLE_FILE, Checkpoint, Part
from safemerge.storage.model_files import companion_files, copy_companions, write_config, write_index
from safemerge.storage.shards import FLOAT_DTYPES, Advance, Rewrite, plan_shard

_INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_OUTPUT_EMBEDDING = "lm_head"


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
    """Names of parameters, such as ``lm_head.weight``, to tensors that replace the checkpoint's."""


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
            tensor_bytes = sum(tensor.n_bytes for shard in self._shards for tensor in shard.tensors)
            write_index(self._source, folder, copies=self._places.copies, tensor_bytes=tensor_bytes)

    def _rewrite(self, name: str) -> Rewrite | None:
        saved = self._places.saved.get(name)
        if saved is not None:
            rows = saved.reshape(saved.shape or (1,))
            return Rewrite(lambda block, first: rows[first : first + len(block)].to(block.dtype))
        patches = self._places.patches.get(name)
        if patches is None:
            return None
        rescaled = any(
            patch.part.transposed and patch.module in self._changes.magnitudes for patch in patches
        )
        return Rewrite(functools.partial(self._patched, patches), whole=rescaled)

    def _patched(self, patches: list[_Patch], block: Tensor, first: int) -> Tensor:
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
        self._checkpoint = checkpoint
        self.patches: dict[str, list[_Patch]] = {}
        self.saved: dict[str, Tensor] = {}
        self.copies: dict[str, str] = {}
        """New tensors to the existing ones that they start from."""
        wrong = []
        touched = [*changes.shapes, *(name.removesuffix(".weight") for name in changes.saved)]
        for module, place in checkpoint.locate(changes.shapes).items():
            expected, got = changes.shapes[module], checkpoint.shape(place)
            if expected != got:
                wrong.append(f"{module} (expected {expected} as of the update, got {got})")
            start = 0
            for part in place:
                d_out = checkpoint.shape((part,))[0]
                patch = _Patch(module, part, slice(start, start + d_out))
                self.patches.setdefault(self._own_name(module, part.name), []).append(patch)
                start += d_out
        for name, tensor in changes.saved.items():
            module = name.removesuffix(".weight")
            (part,) = checkpoint.locate([module])[module]
            got_shape = checkpoint.tensors[part.name].shape
            if tuple(tensor.shape) != got_shape:
                wrong.append(
                    f"{name} (expected {tuple(tensor.shape)} as of the saved tensor, got {got_shape})"
                )
            self.saved[self._own_name(module, part.name)] = tensor
        if wrong:
            raise MismatchError(f"{checkpoint.folder}: the adapter does not fit: {'; '.join(sorted(wrong))}")
        self.untied = _ties_embeddings(checkpoint) and any(
            _last(module) in (_OUTPUT_EMBEDDING, *_INPUT_EMBEDDINGS) for module in touched
        )
        if self.untied and not self.copies and _stored_output_embedding(checkpoint) is None:
            changed = {*self.patches, *self.saved}
            embedding = next(
                name for name in changed if _last(name.removesuffix(".weight")) in _INPUT_EMBEDDINGS
            )
            self.copies[f"{_OUTPUT_EMBEDDING}.weight"] = embedding

    def _own_name(self, module: str, stored: str) -> str:
        """Where the weight of a module is to be stored; a tied output embedding gets a tensor of its own."""
        if _last(module) != _OUTPUT_EMBEDDING or _last(stored.removesuffix(".weight")) == _OUTPUT_EMBEDDING:
            return stored
        self.copies[f"{module}.weight"] = stored
        return f"{module}.weight"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _stored_output_embedding(checkpoint: Checkpoint) -> str | None:
    return next(
        (name for name in checkpoint.tensors if f".{name}".endswith(f".{_OUTPUT_EMBEDDING}.weight")), None
    )


def _ties_embeddings(checkpoint: Checkpoint) -> bool:
    """Whether input and output embedding are one tensor; configs may leave out their kind's default."""
    text = checkpoint.config.get("text_config")
    for config in (checkpoint.config, text if isinstance(text, dict) else {}):
        if "tie_word_embeddings" in config:
            return bool(config["tie_word_embeddings"])
    generates = any(
        str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        for name in checkpoint.config.get("architectures") or ()
    )
    return generates and _stored_output_embedding(checkpoint) is None
