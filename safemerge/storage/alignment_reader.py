"""Weights of an aligned and an unaligned checkpoint, module by module, with digests of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.core.module_names import natural_order
from safemerge.errors import MismatchError
from safemerge.records import json_digest
from safemerge.storage.checkpoints import Checkpoint, check_same_architecture
from safemerge.storage.digests import tensor_digest


class AlignmentReader:
    """Gives (aligned, unaligned) weights of one module at a time, and hashes them first.

    Hashing takes about as long as scoring. Both leave the interpreter lock alone, so threads that
    each read and score modules of their own keep as many cores busy. A module's pages stay resident
    until its weights are dropped.

    Args:
        aligned: The aligned model's checkpoint.
        unaligned: The unaligned model's checkpoint.
        tasks: Adapters, each module path to LoRA pair, whose modules will be read.
        digests: Whether to hash what is read.

    Raises:
        MismatchError: the models differ in architecture, or a weight's shape does not fit.
        CheckpointError: a module is missing.
    """

    def __init__(
        self,
        aligned: Checkpoint,
        unaligned: Checkpoint,
        tasks: Sequence[Mapping[str, LoraPair]],
        *,
        digests: bool = True,
    ) -> None:
        check_same_architecture(aligned, unaligned)
        modules = set().union(*tasks)
        self._checkpoints = (aligned, unaligned)
        self._places = tuple(checkpoint.locate(modules) for checkpoint in self._checkpoints)
        for pairs in tasks:
            self._check_shapes(pairs)
        self._hashes = digests
        self._digests: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def __call__(self, module: str) -> tuple[Tensor, Tensor]:
        """(aligned, unaligned) weight of a module, each (d_out, d_in), mapped from its file.

        Any number of threads may call at once.
        """
        aligned, unaligned = (
            checkpoint.read(places[module])
            for checkpoint, places in zip(self._checkpoints, self._places, strict=True)
        )
        if self._hashes:
            for digests, weight in zip(self._digests, (aligned, unaligned), strict=True):
                digests[module] = tensor_digest(_as_stored(weight))
        return aligned, unaligned

    def read_digests(self) -> tuple[str, str]:
        """sha256 of (aligned, unaligned) checkpoint: its header, and each module's weight that was read."""
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


def _as_stored(weight: Tensor) -> Tensor:
    """The weight in the order of its bytes, so that hashing one that is stored transposed copies nothing."""
    return weight.T if weight.T.is_contiguous() else weight
