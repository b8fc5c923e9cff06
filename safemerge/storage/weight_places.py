"""Where the weights of modules lie in a checkpoint, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from safemerge.errors import MismatchError, UnsupportedAdapterError
from safemerge.storage.architectures import (
    EXPERT,
    EXPERTS,
    HEADS,
    INPUT_EMBEDDINGS,
    LINEAR_EXPERT,
    PASSED_OVER,
    ExpertLayout,
    is_tied,
    is_transposed,
    model_type,
    stem,
)


class Part(NamedTuple):
    """Where a weight matrix, or some of its rows, lies in a checkpoint."""

    name: str
    """Tensor that holds it."""
    expert: int | None = None
    """Index along the first dimension, where the tensor stacks the matrices of several experts."""
    transposed: bool = False
    """Whether it is stored as (d_in, d_out), as Conv1D layers and input embeddings are."""


WeightPlace = tuple[Part, ...]
"""Where the weight of a module lies: parts stacked along d_out, nearly always a single one."""


class PlaceFinder:
    """Finds modules by name, whatever prefixes checkpoint and adapter put before the language model.

    Args:
        shapes: Tensor name to shape.
        config: config.json.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> None:
        self._shapes = shapes
        self._kind = model_type(config)
        self._tied = is_tied(config)
        self._by_stem: dict[str, list[str]] = {}
        for name in shapes:
            self._by_stem.setdefault(stem(self._kind, name), []).append(name)

    def find(self, modules: Iterable[str]) -> dict[str, WeightPlace]:
        """Where each module lies, without those that are not there.

        Raises:
            UnsupportedAdapterError: experts of an architecture whose layout is not known, or which PEFT
                does not load.
            MismatchError: several tensors could be meant, or the number of experts differs.
        """
        modules = list(modules)
        self._refuse_experts(modules)
        found = {module: place for module in modules if (place := self._place(module))}
        self._check_expert_counts(modules)
        return found

    def _place(self, module: str) -> WeightPlace | None:
        expert = EXPERT.fullmatch(module)
        if expert:
            return self._expert(
                EXPERTS[self._kind], expert["container"], expert["parameter"], expert["index"]
            )
        name = self._name(f"{module}.weight")
        if name is None and self._tied and module.rpartition(".")[2] in HEADS:
            found = (self._name(f"{embedding}.weight") for embedding in INPUT_EMBEDDINGS)
            name = next(filter(None, found), None)
        return None if name is None else (Part(name, transposed=is_transposed(self._kind, module)),)

    def _expert(self, layout: ExpertLayout, container: str, parameter: str, index: str) -> WeightPlace | None:
        layers = layout.gate_up if parameter == "gate_up_proj" else layout.down
        if layers:
            names = [self._name(f"{container}.{index}.{layer}.weight") for layer in layers]
            whole = [name for name in names if name is not None]
            return tuple(Part(name) for name in whole) if len(whole) == len(names) else None
        name = self._name(f"{container}.{parameter}")
        if name is None or int(index) >= self._shapes[name][0]:
            return None
        return (Part(name, expert=int(index), transposed=layout.transposed),)

    def _name(self, path: str) -> str | None:
        """The tensor of this very name, else the one that differs in its prefix alone."""
        if path in self._shapes:
            return path
        names = self._by_stem.get(stem(self._kind, path), [])
        if len(names) > 1:
            raise MismatchError(f"{path}: expected one tensor, got {' and '.join(sorted(names))}")
        return names[0] if names else None

    def _refuse_experts(self, modules: list[str]) -> None:
        stacked = [module for module in modules if EXPERT.fullmatch(module)]
        if stacked and self._kind not in EXPERTS:
            raise UnsupportedAdapterError(
                f"expected experts of {', '.join(sorted(EXPERTS))}, whose layout on disk is known, "
                f"got those of a {self._kind} model, such as {stacked[0]}"
            )
        single = [module for module in modules if LINEAR_EXPERT.fullmatch(module) and module not in stacked]
        if single and self._kind in PASSED_OVER:
            raise UnsupportedAdapterError(
                f"expected the experts of a {self._kind} model adapted by target_parameters, got "
                f"{single[0]} and the like: PEFT 0.21 passes over these when it loads an adapter"
            )

    def _check_expert_counts(self, modules: list[str]) -> None:
        """Check that the model has no more experts than the adapter, whose factors r has split."""
        counts: dict[str, int] = {}
        for module in modules:
            if EXPERT.fullmatch(module):
                parameter = module.rpartition(".")[0]
                counts[parameter] = counts.get(parameter, 0) + 1
        wrong = [
            f"{parameter} ({count})"
            for parameter, count in counts.items()
            if self._place(f"{parameter}.{count}")
        ]
        if wrong:
            raise MismatchError(
                f"expected updates of all experts of the model, got fewer in {', '.join(sorted(wrong))}"
            )
