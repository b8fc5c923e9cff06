"""Pairs of factors, and a method's update of a layer of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from safemerge.core import methods
from safemerge.core.lora import LoraPair
from safemerge.core.methods.base import Layer, Update
from safemerge.core.options import MergeOptions

D_OUT, D_IN = 5, 7


@pytest.fixture(scope="session")
def pair() -> Callable[..., LoraPair]:
    """A (5, 7) update by its seed."""

    def make(
        seed: int, rank: int = 3, scale: float = 2.0, dtype: torch.dtype = torch.float32, d_in: int = D_IN
    ) -> LoraPair:
        generator = torch.Generator().manual_seed(seed)
        lora_a = torch.randn(rank, d_in, generator=generator).to(dtype)
        return LoraPair(lora_a, torch.randn(D_OUT, rank, generator=generator).to(dtype), scale)

    return make


@pytest.fixture(scope="session")
def merged() -> Callable[..., Update]:
    """A method's update of a chosen layer: name, task pair, safety pair, V, seed and options."""

    def merge(
        method: str,
        task: LoraPair,
        safety: LoraPair | None = None,
        *,
        difference: torch.Tensor | None = None,
        kept: bool = False,
        weights: tuple[float, float] | None = None,
        **given: Any,
    ) -> Update:
        options = MergeOptions(method=method, **given)
        chosen = methods.get(method)
        term = None
        if chosen.alignment_term is not None:
            term = chosen.alignment_term(task, difference, options)
        make = chosen.keep if kept else chosen.merge
        return make(Layer(task, safety, term, weights), options, torch.Generator().manual_seed(options.seed))

    return merge


@pytest.fixture(scope="session")
def error_of() -> Callable[[Update, torch.Tensor], float]:
    """Relative distance of an update from a matrix, in float64."""

    def measure(got: Update, expected: torch.Tensor) -> float:
        dense = got.delta(torch.float64) if isinstance(got, LoraPair) else got.to(torch.float64)
        return float((dense - expected).norm() / expected.norm())

    return measure


@pytest.fixture(scope="session")
def peft_merge() -> Callable[..., LoraPair]:
    """What PEFT's ``add_weighted_adapter`` makes of one or two pairs, their weights and its options."""
    from peft import LoraConfig, get_peft_model

    def merge(pairs: tuple[LoraPair, ...], weights: tuple[float, ...], **options: object) -> LoraPair:
        names = ("task", "safety")[: len(pairs)]
        model = torch.nn.Sequential()
        model.add_module("linear", torch.nn.Linear(D_IN, D_OUT, bias=False))
        peft_model = None
        for name, lora in zip(names, pairs, strict=True):
            config = LoraConfig(r=lora.rank, lora_alpha=lora.scale * lora.rank, target_modules=["linear"])
            if peft_model is None:
                peft_model = get_peft_model(model, config, adapter_name=name)
            else:
                peft_model.add_adapter(name, config)
            layer = peft_model.base_model.model.linear
            layer.lora_A[name].weight.data = lora.lora_a.clone()
            layer.lora_B[name].weight.data = lora.lora_b.clone()
        peft_model.base_model.add_weighted_adapter(list(names), list(weights), "merged", **options)
        return LoraPair(layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach())

    return merge
