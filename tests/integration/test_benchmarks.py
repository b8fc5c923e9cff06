"""The benchmarks' ways on a network of toy size: what is compared there is the same computation."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from tests.benchmarks import benchmarks
from tests.conftest import AdapterFactory

LAYERS = 5

pytestmark = pytest.mark.integration


class Bench(NamedTuple):
    """The modules of the benchmark, and inputs that they wrote."""

    shapes: ModuleType
    ways: ModuleType
    folder: Path
    arguments: tuple[object, ...]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with benchmarks("shapes", "ways") as (shapes, ways), pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "POOL_ELEMENTS", 2**14)
        folder = tmp_path_factory.mktemp("bench")
        shape = shapes.Shape(hidden=32, intermediate=48, heads=4, kv_heads=2, layers=LAYERS, vocab=64)
        shapes.write_pair(folder, shape, LAYERS)
        for name, seed in (("task-0", 0), ("task-1", 1), ("safety", 2)):
            shapes.write_adapter(folder / f"{name}-{LAYERS}", shape, "all", LAYERS, seed)
        yield Bench(shapes, ways, folder, (folder, shape, "all", LAYERS, 1))


def test_both_ways_choose_the_same_layers_by_the_same_cosines(bench: Bench):
    ours = bench.ways.run_merge(*bench.arguments)["merge"]["layers"]
    textbook = bench.ways._textbook(bench.folder, LAYERS)
    assert ours.keys() == textbook.keys()
    assert len(ours) == 7 * LAYERS
    for module, (cosine, merged) in ours.items():
        assert merged == textbook[module][1]
        assert cosine == pytest.approx(textbook[module][0], abs=1e-6)  # d×d products in fp32
    assert sum(merged for _, merged in ours.values()) == round(7 * LAYERS / 2)


@pytest.mark.parametrize("block", [None, 100])
def test_the_floor_reads_and_subtracts_the_tensors(bench: Bench, block: int | None):
    from safemerge.storage.checkpoints import Checkpoint

    name = "model.layers.3.self_attn.k_proj"
    floor = bench.ways._Floor(bench.folder, {name: (16, 32)})
    floor.run(block)
    aligned, unaligned = (
        Checkpoint.open(bench.folder / model).read_tensor(f"{name}.weight").float()
        for model in ("aligned", "unaligned")
    )
    last = 16 * 32 if block is None else 16 * 32 % block
    assert torch.equal(floor.wide[0, :last], (aligned - unaligned).reshape(-1)[-last:])


def test_every_way_gives_its_figures(bench: Bench):
    figures = bench.ways.run_floor(*bench.arguments) | bench.ways.run_sweep(*bench.arguments)
    figures |= bench.ways.run_many(*bench.arguments, adapters=2)
    for way in ("floor", "floor_blocked", "score", "score_with_digests", "one", "many", "sweep_fifty"):
        assert figures[way]["work_s"] > 0
    assert figures["many"]["largest_error"] < 1e-7  # against float64


def test_memory_of_the_textbook_way_is_estimated_before_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    _, shape, targets, layers, _ = bench.arguments
    # Two models in fp32, and 4 bytes for each entry of the projections of q, k, v, o, gate, up and down.
    projections = LAYERS * (3 * 32**2 + 2 * 16**2 + 2 * 48**2)
    needed = 8 * shape.parameters(LAYERS) + 4 * projections
    assert bench.ways.textbook_bytes(shape, targets, layers) == needed
    monkeypatch.setattr(bench.ways, "available_bytes", lambda: needed)
    found = bench.ways.run_textbook(*bench.arguments)["textbook"]
    assert found["out_of_memory"] is True


def test_generation_compares_the_same_answers(
    bench: Bench, tiny_checkpoint: Path, tiny_adapter: AdapterFactory
):
    import generation

    del sys.modules["generation"]  # it is known by this name here alone

    options = Namespace(model=tiny_checkpoint, new_tokens=8, batch_size=3)
    arms = {"aligned": None, "tuned": tiny_adapter(seed=3, scale=0.5)}
    prompts = generation._prompts(generation.SUITES, 7)
    assert len(set(prompts.values())) == 7
    ours, answers = generation._ours(options, arms, prompts)
    theirs, same = generation._lm_eval(options, arms, prompts, 2)
    assert generation._same(answers, same) == 1
    assert answers["aligned"] != answers["tuned"]
    ratios = generation._ratios({"safemerge": ours, "lm-eval, batch size 8": theirs})
    speedup = theirs["work_s"] / ours["work_s"]
    assert ratios == dict.fromkeys(generation.GOALS, speedup)
