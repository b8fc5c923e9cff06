"""Weight files written anew, block by block: tensors are copied as they are, cast, or changed on the way.

No tensor is ever held in full unless its change needs it so, and nothing is mapped: memory stays at a few
blocks, whatever the size of the file. Names, order and metadata are the source's.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from safemerge.errors import CheckpointError, NonFiniteError

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of safetensors to dtypes: those that can be changed and cast. Others are copied."""

_BLOCK_ELEMENTS = 1 << 18
"""Numbers that are changed at once: 1 MB in fp32, so that the copies a change makes stay in cache.

Measured on two cores: blocks of 8 MB took twice the processor time."""
_COPY_BYTES = 1 << 20


class Rewrite(NamedTuple):
    """How a tensor is changed on its way."""

    change: Callable[[Tensor, int], Tensor]
    """Given rows of the stored tensor (along its first dimension; fp32, or fp64 where it is stored so)
    and the index of the first of them, the rows to store, of the same shape."""
    whole: bool = False
    """Whether it needs all rows at once."""


Rewrites = Callable[[str], Rewrite | None]
"""Names of tensors to how they are changed, None of those that are not; asked when a tensor's turn comes."""
Advance = Callable[[str, int], None]
"""Called with a tensor's name and bytes written of it since the last call."""


class _Planned(NamedTuple):
    """A tensor to write: what it is, and where its bytes lie in the source."""

    name: str
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    start: int
    """Where its bytes begin in the source file."""
    n_bytes: int
    """Of the new file."""


@dataclass(frozen=True)
class Shard:
    """A weight file to be written, whose layout is known."""

    source: Path
    header: bytes
    tensors: tuple[_Planned, ...]
    """In the order of their bytes in the new file."""

    @property
    def n_bytes(self) -> int:
        """Size of the new file."""
        return len(self.header) + self.tensor_bytes

    @property
    def tensor_bytes(self) -> int:
        """Size of its tensors: what ``advance`` is told of in all."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def write(self, output: Path, rewrites: Rewrites, advance: Advance | None = None) -> None:
        """Write the file.

        Raises:
            CheckpointError: the source ends early.
            NonFiniteError: a changed or cast tensor holds NaN or infinity; it is named.
        """
        with self.source.open("rb") as reader, output.open("wb") as writer:
            writer.write(self.header)
            for tensor in self.tensors:
                reader.seek(tensor.start)
                for block in _blocks(reader, tensor, rewrites(tensor.name)):
                    writer.write(block)
                    if advance is not None:
                        advance(tensor.name, len(block))


def plan_shard(source: Path, *, dtype: str | None = None, copies: Mapping[str, str] | None = None) -> Shard:
    """Lay out a new weight file after an existing one.

    Args:
        source: A safetensors file.
        dtype: Store all float tensors so, in the words of safetensors; None keeps each as it is.
        copies: New tensors, each with the name of the tensor of this file that it starts from.

    Returns:
        The plan. Where no size changes the layout is the source's, byte for byte.

    Raises:
        CheckpointError: the header cannot be read.
    """
    header, data_start = _read_header(source)
    metadata = header.pop("__metadata__", None)
    for new, existing in (copies or {}).items():
        header[new] = header[existing]
    tensors = [_planned(name, entry, data_start, dtype) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.start)
    if copies or any(tensor.dtype != tensor.source_dtype for tensor in tensors):
        # Readers ask that every tensor starts at a multiple of its item size.
        tensors.sort(key=_item_bytes, reverse=True)
    offsets, end = {}, 0
    for tensor in tensors:
        offsets[tensor.name] = [end, end + tensor.n_bytes]
        end += tensor.n_bytes
    dtypes = {tensor.name: tensor.dtype for tensor in tensors}
    described: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    for name, entry in header.items():
        described[name] = entry | {"dtype": dtypes[name], "data_offsets": offsets[name]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return Shard(source, struct.pack("<Q", len(text)) + text, tuple(tensors))


def _read_header(source: Path) -> tuple[dict[str, Any], int]:
    """The header as it stands, and where the data after it starts."""
    try:
        with source.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return json.loads(file.read(length)), 8 + length
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{source}: expected a whole safetensors file, got a damaged one ({error})"
        ) from error


def _planned(name: str, entry: dict[str, Any], data_start: int, dtype: str | None) -> _Planned:
    start, end = entry["data_offsets"]
    stored, shape = entry["dtype"], tuple(entry["shape"])
    if dtype is None or stored not in FLOAT_DTYPES:
        return _Planned(name, shape, stored, stored, data_start + start, end - start)
    n_bytes = math.prod(shape) * FLOAT_DTYPES[dtype].itemsize
    return _Planned(name, shape, stored, dtype, data_start + start, n_bytes)


def _item_bytes(tensor: _Planned) -> float:
    return tensor.n_bytes / max(1, math.prod(tensor.shape))


def _blocks(reader: BinaryIO, tensor: _Planned, rewrite: Rewrite | None) -> Iterator[memoryview]:
    """A tensor's bytes as they are to be stored, in order."""
    if rewrite is None and tensor.dtype == tensor.source_dtype:
        for start in range(0, tensor.n_bytes, _COPY_BYTES):
            yield _read(reader, tensor.name, min(_COPY_BYTES, tensor.n_bytes - start)).numpy().data
        return
    stored, dtype = FLOAT_DTYPES[tensor.source_dtype], FLOAT_DTYPES[tensor.dtype]
    shape = tensor.shape or (1,)
    row_shape = shape[1:]
    row_bytes = math.prod(row_shape) * stored.itemsize
    step = (
        shape[0] if rewrite is not None and rewrite.whole else _BLOCK_ELEMENTS // max(1, math.prod(row_shape))
    )
    step = max(1, step)
    for first in range(0, shape[0], step):
        rows = min(step, shape[0] - first)
        block = _read(reader, tensor.name, rows * row_bytes).view(stored).view(rows, *row_shape)
        if rewrite is not None:
            changed = rewrite.change(block.to(torch.promote_types(stored, torch.float32)), first).to(dtype)
        else:
            changed = block.to(dtype)
        if not _is_finite(changed) and (rewrite is not None or _is_finite(block)):
            raise NonFiniteError(
                f"{tensor.name}: expected finite numbers to store as {tensor.dtype}, got NaN or infinity"
            )
        yield changed.contiguous().view(-1).view(torch.uint8).numpy().data


def _read(reader: BinaryIO, name: str, n_bytes: int) -> Tensor:
    buffer = torch.empty(n_bytes, dtype=torch.uint8)
    got = reader.readinto(buffer.numpy().data)  # type: ignore[attr-defined]
    if got != n_bytes:
        raise CheckpointError(f"{reader.name}: expected {n_bytes} more bytes of {name}, got {got}")
    return buffer


def _is_finite(block: Tensor) -> bool:
    # NaN and infinity survive in a sum, which costs a fraction of looking at each number. A sum
    # can overflow without them: only then each is looked at.
    total = block.sum(dtype=torch.promote_types(block.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(block).all())
