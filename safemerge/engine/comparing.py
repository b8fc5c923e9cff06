"""Two adapters beside each other, layer by layer, from their factors alone."""

from __future__ import annotations

import math
from pathlib import Path

import safemerge
from safemerge.core.difference import difference_norm, inner_product
from safemerge.core.lora import LoraPair
from safemerge.core.module_names import natural_order
from safemerge.errors import ConfigError, MismatchError
from safemerge.reports.adapters import DifferenceReport, LayerDifference
from safemerge.storage.adapters import adapter_digest, read_adapter
from safemerge.storage.hub import resolve

TOLERANCE = 1e-6
"""Storing factors in fp32 anew, at another scale or rank, differs by less; any training step by more."""


def compare_adapters(a: str | Path, b: str | Path, *, tolerance: float = TOLERANCE) -> DifferenceReport:
    """Compare the updates of two adapters, whatever their ranks and scales.

    Args:
        a: Folder or hub id of the adapter that differences are relative to.
        b: Folder or hub id of the other one.
        tolerance: Largest relative difference that counts as none.

    Raises:
        ConfigError: the tolerance is no number of at least 0.
        SafemergeError: an adapter cannot be read, or layers differ in shape.
    """
    if not tolerance >= 0 or math.isinf(tolerance):
        raise ConfigError(f"tolerance: expected a number of at least 0, got {tolerance}")
    folders = [resolve(source, "adapter") for source in (a, b)]
    first, second = (read_adapter(folder).pairs for folder in folders)
    if wrong := [
        f"{module} ({first[module].shape} and {second[module].shape})"
        for module in sorted(first.keys() & second.keys(), key=natural_order)
        if first[module].shape != second[module].shape
    ]:
        raise MismatchError(f"expected adapters of one base model, got different shapes: {', '.join(wrong)}")
    modules = sorted(first.keys() | second.keys(), key=natural_order)
    found = [_Layer(module, first.get(module), second.get(module)) for module in modules]
    layers = tuple(layer.report() for layer in found)
    squares = (sum(getattr(layer, side) ** 2 for layer in found) for side in ("norm_a", "norm_b", "apart"))
    norm_a, norm_b, apart = map(math.sqrt, squares)
    difference = _relative(apart, norm_a)
    digests = [adapter_digest(folder) for folder in folders]
    same = all(layer.difference is not None and layer.difference <= tolerance for layer in layers)
    return DifferenceReport(
        safemerge_version=safemerge.__version__,
        a=str(a),
        b=str(b),
        digests=dict(zip("ab", digests, strict=True)),
        difference=difference,
        cosine=_cosine(sum(layer.inner for layer in found), norm_a, norm_b),
        tolerance=tolerance,
        same=same,
        identical=digests[0] == digests[1],
        layers=layers,
    )


class _Layer:
    """The figures of one layer, where an adapter that lacks it counts as zero."""

    def __init__(self, module: str, a: LoraPair | None, b: LoraPair | None) -> None:
        self.module, self.both = module, a is not None and b is not None
        self.a, self.b = a, b
        self.norm_a = 0.0 if a is None else a.norm()
        self.norm_b = 0.0 if b is None else b.norm()
        if a is None or b is None:
            self.apart, self.inner = self.norm_a + self.norm_b, 0.0
        else:
            self.apart, self.inner = difference_norm(a, b), inner_product(a, b)

    def report(self) -> LayerDifference:
        return LayerDifference(
            module=self.module,
            norm_a=None if self.a is None else self.norm_a,
            norm_b=None if self.b is None else self.norm_b,
            difference=_relative(self.apart, self.norm_a) if self.both else None,
            cosine=_cosine(self.inner, self.norm_a, self.norm_b) if self.both else None,
        )


def _relative(apart: float, norm: float) -> float | None:
    """Apart / norm; None where it is infinite."""
    if norm == 0:
        return None if apart else 0.0
    return apart / norm


def _cosine(inner: float, norm_a: float, norm_b: float) -> float | None:
    if norm_a == 0 or norm_b == 0:
        return None
    return max(-1.0, min(1.0, inner / (norm_a * norm_b)))
