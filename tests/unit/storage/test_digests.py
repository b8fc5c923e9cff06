"""Digests: equal for equal content, different for any difference."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from safemerge.storage.digests import file_digest, tensor_digest


def test_file_digest_is_the_sha256_of_its_bytes(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_tensor_digest_covers_every_byte(dtype: torch.dtype):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    same = tensor.T.contiguous().T  # other strides, same content
    assert tensor_digest(tensor) == tensor_digest(same)
    same = same.clone()
    same[1, 2] = 7
    assert tensor_digest(tensor) != tensor_digest(same)
