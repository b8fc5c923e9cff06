"""Weights of two checkpoints by module, and digests of exactly what was read."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from safemerge.errors import CheckpointError, MismatchError
from safemerge.storage.adapters import read_adapter
from safemerge.storage.alignment_reader import AlignmentReader
from safemerge.storage.checkpoints import Checkpoint
from safemerge.storage.weight_places import Part, WeightPlace

Q = "model.layers.0.self_attn.q_proj"


def open_reader(files, **options: bool) -> AlignmentReader:
    pairs = read_adapter(files.task).pairs
    checkpoints = Checkpoint.open(files.aligned), Checkpoint.open(files.unaligned)
    return AlignmentReader(*checkpoints, [pairs], **options)


def digests(files) -> tuple[str, str]:
    reader = open_reader(files)
    for module in read_adapter(files.task).pairs:
        reader(module)
    return reader.read_digests()


def test_gives_aligned_then_unaligned_weight(merge_files):
    aligned, unaligned = open_reader(merge_files)(Q)
    assert torch.equal(aligned, Checkpoint.open(merge_files.aligned).read_tensor(f"{Q}.weight"))
    assert torch.equal(unaligned, Checkpoint.open(merge_files.unaligned).read_tensor(f"{Q}.weight"))


def test_digests_cover_what_was_read_and_the_header(merge_files, edit_tensors):
    before = digests(merge_files)
    assert before == digests(merge_files)
    assert before[0] != before[1]
    file = merge_files.aligned / "model.safetensors"
    edit_tensors(file, lambda t: t["model.embed_tokens.weight"].add_(1))  # not read
    assert digests(merge_files) == before
    edit_tensors(file, lambda t: t[f"{Q}.weight"].add_(1))
    changed = digests(merge_files)
    assert changed[0] != before[0]
    assert changed[1] == before[1]
    edit_tensors(file, lambda t: t.update(extra=torch.ones(1)))  # header
    assert digests(merge_files)[0] != changed[0]


class Transposed(Checkpoint):
    """A checkpoint of Conv1D layers, which store their weights as (d_in, d_out)."""

    def locate(self, modules: Iterable[str]) -> dict[str, WeightPlace]:
        return {module: (Part(f"{module}.weight", transposed=True),) for module in modules}


def test_weights_stored_transposed_are_hashed_as_they_lie(merge_files):
    pairs, found = {Q: read_adapter(merge_files.task).pairs[Q]}, []
    for kind in (Checkpoint, Transposed):
        reader = AlignmentReader(kind.open(merge_files.aligned), kind.open(merge_files.unaligned), [pairs])
        aligned, _ = reader(Q)
        found.append((aligned, reader.read_digests()))
    assert torch.equal(found[1][0], found[0][0].T)
    assert found[1][1] == found[0][1]  # the same bytes


def test_without_digests_nothing_is_hashed(merge_files, monkeypatch: pytest.MonkeyPatch):
    hashed = []
    monkeypatch.setattr("safemerge.storage.alignment_reader.tensor_digest", lambda w: hashed.append(w) or "")
    open_reader(merge_files)(Q)
    assert len(hashed) == 2
    open_reader(merge_files, digests=False)(Q)
    assert len(hashed) == 2


def test_all_layers_whose_shape_does_not_fit_are_named(merge_files, edit_tensors):
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.weight"] = torch.ones(8, 9)

    edit_tensors(merge_files.unaligned / "model.safetensors", widen)
    with pytest.raises(
        MismatchError,
        match=rf"{Q} \(expected \(8, 8\) as of .* update, got aligned \(8, 8\), unaligned \(8, 9\)\)$",
    ):
        open_reader(merge_files)


def test_a_module_missing_from_one_checkpoint_is_named(merge_files, edit_tensors):
    edit_tensors(merge_files.unaligned / "model.safetensors", lambda t: t.pop(f"{Q}.weight"))
    with pytest.raises(CheckpointError, match=f"unaligned: .* got none for {Q}$"):
        open_reader(merge_files)


def test_different_architectures_are_refused(merge_files, edit_json):
    edit_json(merge_files.unaligned / "config.json", hidden_size=9)
    with pytest.raises(MismatchError, match="hidden_size"):
        open_reader(merge_files)
