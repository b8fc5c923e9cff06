"""Weights of an aligned and an unaligned checkpoint, module by module, with digests of what was read."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.scoring import natural_order
from safemerge.errors import MismatchError
from safemerge.records import json_digest
from safemerge.storage.checkpoints import Checkpoint, check_same_architecture
from safemerge.storage.digests import tensor_digest

_MOST_WAITING = 4
"""Tensors that may wait to be hashed: bounds the memory held."""


class AlignmentReader:
    """Gives (aligned, unaligned) weights of one module at a time, and hashes them on threads of their own.

    Hashing takes about as long as scoring and leaves the interpreter lock alone, so the two
    overlap.

    Use as a context manager.

    Args:
        aligned: The aligned model's checkpoint.
        unaligned: The unaligned model's checkpoint.
        tasks: Adapters, each module path to LoRA pair, whose modules will be read.

    Raises:
        MismatchError: the models differ in architecture, or a weight's shape does not fit.
        CheckpointError: a module is missing.
    """

    def __init__(
        self, aligned: Checkpoint, unaligned: Checkpoint, tasks: Sequence[Mapping[str, LoraPair]]
    ) -> None:
        check_same_architecture(aligned, unaligned)
        modules = set().union(*tasks)
        self._checkpoints = (aligned, unaligned)
        self._places = tuple(checkpoint.locate(modules) for checkpoint in self._checkpoints)
        for pairs in tasks:
            self._check_shapes(pairs)
        self._digests: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._waiting: deque[Future[None]] = deque()
        self._hasher = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sha256")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.shutdown(wait=True, cancel_futures=True)

    def __call__(self, module: str) -> tuple[Tensor, Tensor]:
        """(aligned, unaligned) weight of a module, each (d_out, d_in), mapped from its file."""
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().result()
        aligned, unaligned = (
            checkpoint.read(places[module])
            for checkpoint, places in zip(self._checkpoints, self._places, strict=True)
        )
        for digests, weight in zip(self._digests, (aligned, unaligned), strict=True):
            self._waiting.append(self._hasher.submit(_store_digest, digests, module, weight))
        return aligned, unaligned

    def read_digests(self) -> tuple[str, str]:
        """sha256 of (aligned, unaligned) checkpoint: its header, and each module's weight that was read."""
        while self._waiting:
            self._waiting.popleft().result()
        aligned, unaligned = (
            json_digest({"header": checkpoint.header_digest(), "read": digests})
            for checkpoint, digests in zip(self._checkpoints, self._digests, strict=True)
        )
        return aligned, unaligned

    def _check_shapes(self, pairs: Mapping[str, LoraPair]) -> None:
        wrong = []
        for module in sorted(pairs, key=natural_order):
            shapes = [
                checkpoint.shape(places[module])
                for checkpoint, places in zip(self._checkpoints, self._places, strict=True)
            ]
            if any(shape != pairs[module].shape for shape in shapes):
                wrong.append(
                    f"{module} (expected {pairs[module].shape} as of the adapter's update, "
                    f"got aligned {shapes[0]}, unaligned {shapes[1]})"
                )
        if wrong:
            raise MismatchError(f"the adapter does not fit the models' weights: {'; '.join(wrong)}")


def _store_digest(digests: dict[str, str], module: str, weight: Tensor) -> None:
    digests[module] = tensor_digest(weight)
