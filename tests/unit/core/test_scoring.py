"""Scores of many adapters in one pass: exact, each in its place, whatever threads and devices do."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import Tensor

from safemerge.core import alignment
from safemerge.core.lora import LoraPair
from safemerge.core.module_names import natural_order
from safemerge.core.scoring import LayerScore, WeightPair, score_layers, score_many, terms_device
from safemerge.errors import MismatchError, NonFiniteError

# The two products are in fp32 (unit roundoff 6e-8), and errors of entries average out in the norms.
EXACT = 1e-7
MODULES = {"layers.2.q": (60, 40), "layers.10.q": (60, 40), "layers.10.k": (16, 40), "layers.10.d": (40, 90)}


def adapter(seed: int, rank: int = 4, modules: dict[str, tuple[int, int]] = MODULES) -> dict[str, LoraPair]:
    generator = torch.Generator().manual_seed(seed)
    return {
        module: LoraPair(
            torch.randn(rank, d_in, generator=generator),
            torch.randn(d_out, rank, generator=generator),
            0.5 + seed,
        )
        for module, (d_out, d_in) in modules.items()
    }


def models(dtype: torch.dtype = torch.bfloat16, transposed: bool = False) -> dict[str, WeightPair]:
    generator = torch.Generator().manual_seed(99)
    weights = {}
    for module, (d_out, d_in) in MODULES.items():
        unaligned = torch.randn(d_out, d_in, generator=generator)
        aligned = unaligned + 0.1 * torch.randn(d_out, d_in, generator=generator)
        pair = aligned.to(dtype), unaligned.to(dtype)
        weights[module] = tuple(w.T.contiguous().T for w in pair) if transposed else pair
    return weights


def dense(pair: LoraPair, weights: WeightPair) -> float:
    """The definition in float64."""
    v, update = weights[0].double() - weights[1].double(), pair.delta(torch.float64)
    projected = v @ v.T @ update
    return float((projected * update).sum() / (projected.norm() * update.norm()))


def assert_exact(found: dict[str, LayerScore], task: dict[str, LoraPair], weights: dict[str, WeightPair]):
    assert list(found) == sorted(task, key=natural_order)
    for module, score in found.items():
        assert score.cosine == pytest.approx(dense(task[module], weights[module]), abs=EXACT)
        assert score.undefined is None
        assert score.task_norm == pytest.approx(float(task[module].delta(torch.float64).norm()), rel=1e-12)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_cosine_equals_the_definition(
    monkeypatch: pytest.MonkeyPatch, workers: int, transposed: bool, dtype: torch.dtype
):
    monkeypatch.setattr(alignment, "_BLOCK_ELEMENTS", 700)  # several blocks, and some left over
    tasks, weights = [adapter(seed, rank=2 + seed) for seed in range(12)], models(dtype, transposed)
    for found, task in zip(score_many(tasks, weights, workers=workers), tasks, strict=True):
        assert_exact(found, task, weights)


def test_aligned_and_unaligned_weights_may_differ_in_dtype_and_order():
    weights = {
        module: (aligned, unaligned.double().T.contiguous().T)
        for module, (aligned, unaligned) in models().items()
    }
    assert_exact(score_layers(adapter(1), weights), adapter(1), weights)


def test_one_pass_gives_each_adapter_what_it_gets_alone():
    tasks, weights = [adapter(seed) for seed in range(3)], models()
    for found, task in zip(score_many(tasks, weights), tasks, strict=True):
        alone = score_layers(task, weights)
        for module, score in found.items():
            assert score.cosine == pytest.approx(alone[module].cosine, abs=EXACT)
            assert score.task_norm == alone[module].task_norm


@pytest.mark.parametrize("workers", [1, 4])
def test_weights_are_asked_for_once_and_progress_told_in_order(workers: int):
    weights, asked, told = models(), [], []
    few = {module: MODULES[module] for module in ("layers.10.d", "layers.2.q")}
    tasks = [adapter(0, modules={"layers.10.k": (16, 40)}), adapter(1, modules=few)]

    def read(module: str) -> WeightPair:
        asked.append(module)
        return weights[module]

    found = score_many(tasks, read, progress=lambda *state: told.append(state), workers=workers)
    order = ["layers.2.q", "layers.10.d", "layers.10.k"]
    assert sorted(asked) == sorted(order)
    assert told == [(number, 3, module) for number, module in enumerate(order, start=1)]
    assert [list(scores) for scores in found] == [["layers.10.k"], ["layers.2.q", "layers.10.d"]]


def test_layers_are_read_side_by_side():
    weights, met = models(), threading.Barrier(2, timeout=60)

    def read(module: str) -> WeightPair:
        met.wait()  # breaks unless two layers are read at once
        return weights[module]

    assert len(score_many([adapter(0)], read, workers=2)[0]) == len(MODULES)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("score")]


def test_an_interrupted_pass_reads_no_further():
    weights, asked = models(), []

    def read(module: str) -> WeightPair:
        asked.append(module)
        return weights["layers.2.q"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    task = adapter(0, modules={f"{number}": (60, 40) for number in range(500)})
    with pytest.raises(KeyboardInterrupt):
        score_many([task], read, progress=interrupt, workers=2)
    assert len(asked) < 500
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("score")]


def test_no_adapters_and_no_layers_score_to_nothing():
    assert score_many([], {}) == []
    assert score_many([{}], {}, workers=2) == [{}]


@pytest.mark.parametrize("zero", ["lora_a", "lora_b"])
def test_an_adapter_without_a_cosine_leaves_the_others_theirs(zero: str):
    weights, spoilt = models(), adapter(1)
    getattr(spoilt["layers.10.k"], zero).zero_()
    weights["layers.2.q"] = (weights["layers.2.q"][0],) * 2
    first, second = score_many([adapter(0), spoilt], weights)
    for found in (first, second):
        assert found["layers.2.q"][:2] == (None, "alignment did not change the layer")
        assert found["layers.2.q"].task_norm > 0
    assert second["layers.10.k"] == LayerScore(None, "the update is zero", 0.0, {})
    assert first["layers.10.k"].cosine == pytest.approx(
        dense(adapter(0)["layers.10.k"], weights["layers.10.k"]), abs=EXACT
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (0, "the aligned model's weight"),
        (1, "the unaligned model's weight"),
        (2, "the task adapter's lora_A"),
        (3, "the task adapter's lora_B"),
    ],
)
def test_nan_and_infinity_are_named(workers: int, bad: float, place: int, name: str):
    weights, tasks = models(), [adapter(0), adapter(1)]
    pair = tasks[1]["layers.10.q"]
    spoilt: tuple[Tensor, ...] = (*weights["layers.10.q"], pair.lora_a, pair.lora_b)
    spoilt[place][1, 2] = bad
    with pytest.raises(
        NonFiniteError, match=f"^layers.10.q: expected finite numbers, got NaN or infinity in {name}$"
    ):
        score_many(tasks, weights, workers=workers)


def test_products_out_of_range_are_told_from_wrong_inputs():
    huge = {"q": (torch.full((40, 8), 3e38), torch.full((40, 8), -3e38))}  # finite, but not their difference
    with pytest.raises(NonFiniteError, match=r"^q: .* in products of them$"):
        score_layers(adapter(0, modules={"q": (40, 8)}), huge)


def test_missing_weights_are_all_named():
    weights = models()
    del weights["layers.10.q"], weights["layers.2.q"]
    with pytest.raises(MismatchError, match=r"weights of every layer, got none for layers\.2\.q, layers\.10"):
        score_layers(adapter(0), weights)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(40, 61), r"^layers.2.q: alignment: expected shape \(60, 40\) .* got \(40, 61\)"),
        (torch.ones(60), r"^layers.2.q: expected two matrices of one shape"),
        (torch.ones(60, 40, dtype=torch.int8), r"^layers.2.q: expected float weights, got torch.int8"),
    ],
)
def test_weights_that_do_not_fit_are_named(weight: Tensor, message: str):
    with pytest.raises(MismatchError, match=message):
        score_layers(adapter(0), models() | {"layers.2.q": (weight, weight)})


# --- terms ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_terms_are_made_of_all_of_v_for_every_adapter_and_layer(workers: int):
    tasks, weights = [adapter(0), adapter(1)], models()

    def project(task: LoraPair, v: Tensor) -> LoraPair:
        assert v.dtype == torch.float32
        return LoraPair(task.lora_a, v @ (v.T @ task.lora_b), task.scale)

    scored = score_many(tasks, weights, terms={"projected": project}, workers=workers)
    for found, task in zip(scored, tasks, strict=True):
        assert_exact(found, task, weights)
        for module, score in found.items():
            v = weights[module][0].double() - weights[module][1].double()
            expected = v @ v.T @ task[module].delta(torch.float64)
            made = score.terms["projected"].delta(torch.float64)
            # Sums of up to 90 products in fp32.
            assert float((made - expected).norm()) < 1e-6 * float(expected.norm())


def test_terms_are_made_where_a_cosine_is_undefined_too():
    weights = {module: (aligned, aligned) for module, (aligned, _) in models().items()}
    (found,) = score_many([adapter(0)], weights, terms={"task": lambda task, _: task})
    assert all(score.cosine is None and score.terms["task"].rank == 4 for score in found.values())


# --- devices ----------------------------------------------------------------------


def test_methods_never_meet_a_device_without_float64():
    assert terms_device(torch.device("mps")) == torch.device("cpu")
    assert terms_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_another_device_gives_the_same_numbers(device: str):
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}[device]
    if not there():
        pytest.skip(f"no {device} here")
    tasks, weights = [adapter(seed) for seed in range(20)], models()
    terms = {"projected": lambda task, v: LoraPair(task.lora_a, v @ (v.T @ task.lora_b), task.scale)}
    here = score_many(tasks, weights, terms=terms)
    for found, expected in zip(
        score_many(tasks, weights, terms=terms, device=device, workers=2), here, strict=True
    ):
        for module, score in found.items():
            # What score_many promises of devices: fp32 products, summed in another order.
            assert score.cosine == pytest.approx(expected[module].cosine, abs=1e-5)
            assert score.task_norm == expected[module].task_norm
            assert score.terms["projected"].lora_b.device.type == "cpu"
            torch.testing.assert_close(
                score.terms["projected"].lora_b,
                expected[module].terms["projected"].lora_b,
                rtol=1e-4,
                atol=1e-4,
            )
