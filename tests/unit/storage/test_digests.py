"""Digests: equal for equal content, different for any difference."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from safemerge.storage.digests import file_digest, folder_digest, tensor_digest


def test_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_folder_digest_covers_names_and_bytes_and_skips_what_is_hidden(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("x", "y")), (second, ("y", "x"))):
        (folder / "inner").mkdir(parents=True)
        for name in names:
            (folder / "inner" / name).write_text(name)
    assert folder_digest(first) == folder_digest(second)
    (second / ".cache").mkdir()
    (second / ".cache" / "file").write_text("z")
    assert folder_digest(first) == folder_digest(second)
    (second / "inner" / "x").rename(second / "inner" / "z")
    assert folder_digest(first) != folder_digest(second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_tensor_digest_covers_every_byte(dtype: torch.dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    same = tensor.T.contiguous().T  # other strides, same content
    assert tensor_digest(tensor) == tensor_digest(same)
    same = same.clone()
    same[1, 2] = 7
    assert tensor_digest(tensor) != tensor_digest(same)
