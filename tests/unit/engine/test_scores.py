"""Scoring adapters: digests, threads, and the device that it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safemerge import merge_adapters
from safemerge.engine.scores import resolve_device, score_adapters
from safemerge.errors import ConfigError


def set_devices(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool) -> None:
    """Pretend that the machine has so many GPUs: there are none here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


def test_scores_alone_need_no_digests(merge_files):
    scored = score_adapters(*merge_files)
    alone = score_adapters(*merge_files, digests=False)
    assert alone.scores == scored.scores
    assert alone.digests.keys() == {"task_adapter", "safety_adapter"}
    assert alone.digests.items() < scored.digests.items()
    whole = score_adapters(*merge_files, digests=False, hash_files=True)
    assert whole.digests == score_adapters(*merge_files, hash_files=True).digests


def test_scores_do_not_depend_on_the_number_of_threads(merge_files):
    before = torch.get_num_threads()
    try:
        scores = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            scores.append(score_adapters(*merge_files).scores)
    finally:
        torch.set_num_threads(before)
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(("cuda", "mps", "best"), [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda")])
def test_auto_takes_the_best_device(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, best: str):
    set_devices(monkeypatch, cuda, mps)
    assert resolve_device("auto") == torch.device(best)
    assert resolve_device("cpu") == torch.device("cpu")


def test_devices_are_taken_by_number(monkeypatch: pytest.MonkeyPatch):
    set_devices(monkeypatch, cuda=2, mps=False)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"that this machine has \(cuda, cpu\), got 'cuda:2'"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", r"device: expected one that this machine has \(cpu\), got 'cuda'"),
        ("mps", r"device: expected one that this machine has \(cpu\), got 'mps'"),
        ("meta", r"device: expected auto, cpu, cuda, cuda:<number> or mps, got 'meta'"),
        ("gpu", r"device: expected auto, cpu, cuda, cuda:<number> or mps, got 'gpu'"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(
    merge_files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
):
    set_devices(monkeypatch, cuda=0, mps=False)
    with pytest.raises(ConfigError, match=message):
        merge_adapters("no such task", *merge_files[1:], output=tmp_path / "merged", device=name)
    assert merge_adapters(*merge_files, output=tmp_path / "merged", device="auto").layers
