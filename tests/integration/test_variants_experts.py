"""Experts of mixture models: stacked in memory, single on disk, and adapted in either form.

Tolerances are those of :mod:`tests.integration.test_variants`.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from safemerge.errors import AdapterError, MismatchError, UnsupportedAdapterError
from safemerge.merging import merge_adapters
from safemerge.storage.adapters import read_adapter
from safemerge.storage.checkpoints import Checkpoint
from tests.integration.dense_oracle import WEIGHTS, write_adapter, write_models
from tests.integration.test_variants import LOAD, SIZES, TOLERANCE, merged

pytestmark = [
    pytest.mark.integration,
    # PEFT says so when it has turned adapters of transformers 4 into those of today.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

EXPERTS = {"moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}


def mixture(kind: str) -> Any:
    made = {
        "mixtral": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**SIZES, num_local_experts=4)
        ),
        "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=8)
        ),
        "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**SIZES, **EXPERTS)
        ),
        "gpt_oss": lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(**SIZES, head_dim=4, num_local_experts=4, num_experts_per_tok=2)
        ),
    }
    return made[kind]()


EAGER = partial(LOAD, experts_implementation="eager")
"""Loads a model whose experts compute in float64 too."""
KINDS = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STORED_TURNED = {"gpt_oss": tuple(BOTH)}
"""Stacked parameters that are (experts, d_in, d_out)."""


@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_an_adapter_holds_in_one(tmp_path: Path, kind: str):
    task = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": BOTH}
    safety = {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj"], "target_parameters": BOTH[1:]}
    report = merged(
        tmp_path,
        mixture(kind),
        task | {"rank_pattern": {"gate_up_proj": 3}, "alpha_pattern": {r"1\.mlp\.experts\.down_proj": 2}},
        safety,
        STORED_TURNED.get(kind, ()),
        EAGER,
    )
    assert len(report.layers) == 2 + 2 * 2 * 4
    assert "model.layers.1.mlp.experts.gate_up_proj.3" in {layer.module for layer in report.layers}


def test_routers_are_adapted_as_parameters(tmp_path: Path):
    """In a folder of Mixtral they are ``block_sparse_moe.gate``, in memory ``mlp.gate``."""
    settings = {"lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}
    report = merged(tmp_path, mixture("mixtral"), {"r": 2} | settings, {"r": 3} | settings, load=EAGER)
    assert "model.layers.0.mlp.gate" in {layer.module for layer in report.layers}
