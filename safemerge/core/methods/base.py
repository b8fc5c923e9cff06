"""What a merge method is: how it makes one update of the task's and the safety adapter's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safemerge.core.lora import LoraPair
from safemerge.errors import MismatchError

if TYPE_CHECKING:
    from safemerge.core.options import MergeOptions


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight matrix as a method sees it."""

    task: LoraPair
    """ΔW_task."""
    safety: LoraPair | None = None
    """ΔW_safety; None where the safety adapter lacks the layer, or there is none."""
    term: LoraPair | None = None
    """What the method's ``alignment_term`` made of V in this layer."""
    weights: tuple[float, float] | None = None
    """(α, β) of this layer, where each has its own."""


Update = LoraPair | Tensor
"""A merged update: as factors where the method keeps the rank low, else in full, (d_out, d_in), fp32."""
Merge = Callable[[Layer, "MergeOptions", torch.Generator], Update]
"""Makes one update. All random draws come from the generator, which lives on the CPU."""
AlignmentTerm = Callable[[LoraPair, Tensor, "MergeOptions"], LoraPair]
"""Makes a low-rank term of ΔW_task and V, (d_out, d_in), fp32, while the checkpoints are being read."""


def scaled(pair: LoraPair, weight: float = 1.0) -> LoraPair:
    """Give weight · ΔW in fp32, with weight and scale folded into B.

    The fold rounds each entry of B once, to within 2⁻²⁴ of itself; it is exact where
    weight · scale is a power of two, as it is for lora_alpha = r, 2r or 4r at weight 1.
    """
    lora_b = (pair.lora_b.to(torch.float64) * (weight * pair.scale)).to(torch.float32)
    return LoraPair(pair.lora_a.to(torch.float32), lora_b)


def kept(layer: Layer, _options: MergeOptions, _generator: torch.Generator) -> LoraPair:
    """ΔW_task as it is."""
    return scaled(layer.task)


def side_by_side(*pairs: LoraPair) -> LoraPair:
    """The sum of updates, exactly: their factors set side by side, so that ranks add up. Scales are 1.

    Raises:
        MismatchError: the updates differ in shape.
    """
    check_shapes(*pairs)
    return LoraPair(
        torch.cat([pair.lora_a for pair in pairs], dim=0), torch.cat([pair.lora_b for pair in pairs], dim=1)
    )


def check_shapes(*updates: LoraPair | Tensor) -> None:
    """Check that updates, as factors or in full, are of one weight matrix.

    Raises:
        MismatchError: they differ in shape.
    """
    shapes = [tuple(update.shape) for update in updates]
    if len(set(shapes)) > 1:
        raise MismatchError(f"expected updates of one shape, got {' and '.join(map(str, shapes))}")


@dataclass(frozen=True)
class MergeMethod:
    """How updates are merged, and what that takes."""

    merge: Merge
    """Makes the update of a chosen layer. Where ``needs_safety``, ``layer.safety`` is there."""
    keep: Merge = kept
    """Makes the update of a layer that is not chosen."""
    chooses: bool = True
    """Whether layers are chosen by their cosines; otherwise ``merge`` makes every layer's update."""
    needs_safety: bool = True
    """Whether a safety adapter takes part. Layers that it lacks are then kept."""
    default_weights: tuple[float, float] = (0.8, 0.2)
    """(α, β) where neither is given. Where the two add up to 1, a single weight given makes the other."""
    prunes: bool = False
    """Whether it draws or ranks entries to keep: it then takes ``density``."""
    decomposes: bool = False
    """Whether it uses leading singular directions of V: it then takes ``components``."""
    weighs_layers: bool = False
    """Whether each layer has weights of its own: it then takes ``coefficients``."""
    weighed_sum: bool = False
    """Whether a merged update is α·ΔW_task + β·ΔW_safety: ``learn`` can then start from it."""
    changes_kept: bool = False
    """Whether ``keep`` gives another update than ΔW_task."""
    alignment_term: AlignmentTerm | None = None
    """Where it uses V itself: a low-rank term that is made when the checkpoints are read."""

    @property
    def weighs_safety(self) -> bool:
        """Whether β plays a part."""
        return self.needs_safety or sum(self.default_weights) != 1
