"""Weight files written anew: bit for bit where nothing changes, and readable by safetensors where it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError, NonFiniteError
from safemerge.storage import shards
from safemerge.storage.shards import Rewrite, plan_shard

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of several dtypes and ranks, one of them empty."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "mask": torch.tensor([True, False, True]),
        "a": torch.randn(7, 3, generator=generator, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "wide": torch.randn(2, 4, 5, generator=generator),
        "ids": torch.arange(5),
    }
    path = tmp_path / "source.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "note": "größer"})
    return path


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK_ELEMENTS", 6)
    monkeypatch.setattr(shards, "_COPY_BYTES", 16)


def _nothing(_name: str) -> None:
    return None


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def test_without_a_change_the_file_is_the_same_byte_for_byte(source: Path, tmp_path: Path) -> None:
    plan = plan_shard(source)
    plan.write(tmp_path / "new", _nothing)
    assert (tmp_path / "new").read_bytes() == source.read_bytes()
    assert plan.n_bytes == source.stat().st_size


def test_changes_come_in_blocks_of_rows_and_leave_the_rest_bit_for_bit(source: Path, tmp_path: Path) -> None:
    seen = []

    def change(block: Tensor, first: int) -> Tensor:
        seen.append((first, len(block), block.dtype))
        return block + torch.arange(first, first + len(block))[:, None]

    written: dict[str, int] = {}

    def advance(name: str, n_bytes: int) -> None:
        written[name] = written.get(name, 0) + n_bytes

    plan_shard(source).write(tmp_path / "new", lambda name: Rewrite(change) if name == "a" else None, advance)
    old, new = load_file(source), load_file(tmp_path / "new")
    assert seen == [
        (0, 2, torch.float32),
        (2, 2, torch.float32),
        (4, 2, torch.float32),
        (6, 1, torch.float32),
    ]
    assert _same(new["a"], (old["a"].float() + torch.arange(7)[:, None]).bfloat16())
    assert all(_same(old[name], new[name]) for name in old if name != "a")
    assert written == {name: tensor.nbytes for name, tensor in old.items() if tensor.nbytes}


def test_a_change_may_ask_for_all_rows_at_once(source: Path, tmp_path: Path) -> None:
    plan_shard(source).write(
        tmp_path / "new",
        lambda name: Rewrite(lambda block, _: block.flip(0), whole=True) if name == "a" else None,
    )
    assert _same(load_file(tmp_path / "new")["a"], load_file(source)["a"].flip(0))


def test_a_sum_is_rounded_once(tmp_path: Path) -> None:
    # Just over half the distance to the next bf16 number: a ΔW that was rounded first would be the
    # half itself, and the sum go back to 1.
    delta = 2**-8 + 2**-17
    save_file({"w": torch.ones(1, 1, dtype=torch.bfloat16)}, tmp_path / "old")
    plan_shard(tmp_path / "old").write(tmp_path / "new", lambda _: Rewrite(lambda block, _: block + delta))
    assert load_file(tmp_path / "new")["w"].item() == 1 + 2**-7


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_all_float_tensors_are_cast_and_the_others_kept(source: Path, tmp_path: Path, dtype: str) -> None:
    plan = plan_shard(source, dtype=dtype)
    plan.write(tmp_path / "new", _nothing)
    old, new = load_file(source), load_file(tmp_path / "new")
    assert plan.n_bytes == (tmp_path / "new").stat().st_size
    for name, tensor in old.items():
        cast = tensor.to(shards.FLOAT_DTYPES[dtype]) if tensor.is_floating_point() else tensor
        assert _same(new[name], cast), name
    with safe_open(tmp_path / "new", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "größer"}


def test_fp64_is_changed_in_fp64(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1, 1, dtype=torch.float64)}, tmp_path / "old")
    plan_shard(tmp_path / "old").write(tmp_path / "new", lambda _: Rewrite(lambda block, _: block + 2**-40))
    assert load_file(tmp_path / "new")["w"].item() == 1 + 2**-40


def test_a_copy_starts_from_a_tensor_and_changes_by_its_own_name(source: Path, tmp_path: Path) -> None:
    plan = plan_shard(source, copies={"b": "a"})
    plan.write(tmp_path / "new", lambda name: Rewrite(lambda block, _: -block) if name == "b" else None)
    old, new = load_file(source), load_file(tmp_path / "new")
    assert new.keys() == {*old, "b"}
    assert _same(new["b"], -old["a"])
    assert all(_same(old[name], new[name]) for name in old)


def test_numbers_that_overflow_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"w": torch.full((2, 3), 1e5)}, tmp_path / "old")
    with pytest.raises(NonFiniteError, match="w: expected finite numbers to store as F16, got NaN or inf"):
        plan_shard(tmp_path / "old", dtype="F16").write(tmp_path / "new", _nothing)
    with pytest.raises(NonFiniteError, match="w: expected finite numbers to store as F32"):
        plan_shard(tmp_path / "old").write(tmp_path / "new", lambda _: Rewrite(lambda block, _: block / 0))


def test_infinity_that_was_there_is_cast_and_a_sum_that_overflows_is_no_infinity(tmp_path: Path) -> None:
    old = {"infinite": torch.tensor([float("-inf"), 1.0]), "large": torch.full((4,), 3e38)}
    save_file(old, tmp_path / "old")
    plan_shard(tmp_path / "old", dtype="BF16").write(tmp_path / "new", _nothing)
    new = load_file(tmp_path / "new")
    assert all(_same(new[name], tensor.bfloat16()) for name, tensor in old.items())


def test_a_source_that_ends_early_is_named(source: Path, tmp_path: Path) -> None:
    plan = plan_shard(source)
    source.write_bytes(source.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"source.safetensors: expected \d+ more bytes of \w+, got \d+"):
        plan.write(tmp_path / "new", _nothing)


@pytest.mark.parametrize("content", [b"", b"abc", (8).to_bytes(8, "little") + b"not json"])
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(CheckpointError, match="bad: expected a whole safetensors file, got a damaged one"):
        plan_shard(tmp_path / "bad")


def test_a_file_without_metadata_stays_without(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "old")
    plan_shard(tmp_path / "old", dtype="BF16").write(tmp_path / "new", _nothing)
    content = (tmp_path / "new").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header == {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
