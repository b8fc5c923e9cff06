"""Experts of mixture models: stacked in memory, single on disk, and adapted in either form.

Tolerances are those of :mod:`tests.integration.test_variants`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safemerge.engine.merging import merge_adapters
from safemerge.errors import AdapterError, CheckpointError, MismatchError, UnsupportedAdapterError
from safemerge.evaluation.transformers_arm import load_arm
from safemerge.storage import architectures
from safemerge.storage.adapters import read_adapter
from safemerge.storage.checkpoints import Checkpoint
from tests.integration.dense_oracle import IDS, WEIGHTS, logits_of, updates, write_adapter, write_models
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


LINEAR = {"mixtral": ("w1", "w2", "w3"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}


def single_experts(folder: Path, model: Path, layers: tuple[str, ...], seed: int, rank: int) -> Path:
    """An adapter as transformers 4 trained it, whose experts were linear layers: named as on disk."""
    from peft import LoraConfig

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (d_out, d_in) in matrices(model, layers).items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, d_in, generator=generator) * 0.3
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(d_out, rank, generator=generator) * 0.3
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=["q_proj", *layers], task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    return folder


def matrices(model: Path, layers: tuple[str, ...]) -> dict[str, list[int]]:
    with safe_open(model / "model.safetensors", "pt") as file:
        return {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118 (no mapping)
            if name.endswith(tuple(f"{layer}.weight" for layer in ("q_proj", *layers)))
        }


@pytest.mark.parametrize("kind", LINEAR)
def test_experts_that_were_linear_layers(tmp_path: Path, kind: str):
    models = write_models(tmp_path, mixture(kind))
    task = single_experts(tmp_path / "task", models[0], LINEAR[kind], 1, 2)
    safety = single_experts(tmp_path / "safety", models[0], LINEAR[kind], 2, 3)
    weights = {"task_weight": WEIGHTS[0], "safety_weight": WEIGHTS[1]}
    report = merge_adapters(task, safety, *models, output=tmp_path / "merged", threshold=2.0, **weights)
    assert all(layer.merged for layer in report.layers)

    # Loaded by transformers, whose own conversion stacks the experts, with W + αΔW_task + βΔW_safety.
    pairs = [read_adapter(folder).pairs for folder in (task, safety)]
    expected = load_file(models[0] / "model.safetensors")
    for module in pairs[0]:
        for weight, side in zip(WEIGHTS, pairs, strict=True):
            update = side[module].lora_b.double() @ side[module].lora_a.double() * (6 / side[module].rank)
            expected[f"{module}.weight"] = expected[f"{module}.weight"].double() + weight * update
    (tmp_path / "dense").mkdir()
    save_file(expected, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(models[0] / "config.json", tmp_path / "dense")
    with torch.no_grad():
        logits = EAGER(tmp_path / "dense", dtype=torch.float64)(IDS).logits
    got = logits_of(EAGER, models[0], tmp_path / "merged")
    assert torch.allclose(got, logits, rtol=0, atol=TOLERANCE)


def test_linear_experts_that_peft_passes_over_are_refused(tmp_path: Path):
    """PEFT 0.21 turns the names of Qwen2-MoE's experts, but not the config: it loads none of them."""
    models = write_models(tmp_path, mixture("qwen2_moe"))
    layers = LINEAR["qwen3_moe"]
    task = single_experts(tmp_path / "task", models[0], layers, 1, 2)
    answers = logits_of(EAGER, models[0], task)
    tensors = load_file(task / "adapter_model.safetensors")
    rest = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    assert len(rest) < len(tensors)
    save_file(rest, task / "adapter_model.safetensors")
    assert torch.equal(logits_of(EAGER, models[0], task), answers)

    shutil.rmtree(task)
    single_experts(task, models[0], layers, 1, 2)
    with pytest.raises(UnsupportedAdapterError, match=r"of a qwen2_moe model adapted by target_parameters"):
        merge_adapters(task, task, *models, output=tmp_path / "merged")


def test_stacked_and_single_experts_do_not_go_together(tmp_path: Path):
    models = write_models(tmp_path, mixture("mixtral"))
    single = single_experts(tmp_path / "single", models[0], LINEAR["mixtral"], 1, 2)
    stacked = write_adapter(tmp_path / "stacked", LOAD(models[0]), 1, r=2, target_parameters=BOTH)
    with pytest.raises(
        MismatchError, match=r"got .*experts\.0\.w1.* in the task adapter, .*experts\.\w+\.\d"
    ):
        merge_adapters(single, stacked, *models, output=tmp_path / "merged")


def test_experts_of_another_architecture_are_refused(tmp_path: Path, stacked: tuple[Path, Path]):
    adapter, model = stacked
    copied = shutil.copytree(model, tmp_path / "other")
    config = json.loads((copied / "config.json").read_text()) | {"model_type": "granitemoe"}
    (copied / "config.json").write_text(json.dumps(config))
    pairs = read_adapter(adapter).pairs
    with pytest.raises(
        UnsupportedAdapterError,
        match=r"other: expected experts of .*, gpt_oss, .*, mixtral, .*, got those of a granitemoe",
    ):
        Checkpoint.open(copied).locate(pairs)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A stacked adapter and its model."""
    folder = tmp_path_factory.mktemp("stacked")
    aligned, _ = write_models(folder, mixture("mixtral"))
    return write_adapter(folder / "adapter", LOAD(aligned), 1, r=2, target_parameters=BOTH), aligned


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (4, MismatchError, r"got fewer in model\.layers\.0\.mlp\.experts\.down_proj \(2\)"),
        (1, CheckpointError, r"got none for model\.layers\.0\.mlp\.experts\.down_proj\.4"),
    ],
)
def test_a_rank_that_splits_the_experts_wrongly_is_noticed(
    tmp_path: Path, stacked: tuple[Path, Path], rank: int, error: type[Exception], message: str
):
    adapter = shutil.copytree(stacked[0], tmp_path / "adapter")
    edit(adapter, r=rank)
    with pytest.raises(error, match=message):
        Checkpoint.open(stacked[1]).locate(read_adapter(adapter).pairs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 3}, r"experts\.\w+: expected the factors of several experts of rank 3, got lora_A \(8, "),
        ({"r": 0}, r"expected the factors of several experts of rank 0"),
        (
            {"target_parameters": ["mlp.experts.down_proj"]},
            r"expected factors of down_proj of .*, got 2 pairs",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_stacks_is_named(
    tmp_path: Path, stacked: tuple[Path, Path], settings: dict[str, Any], message: str
):
    adapter = shutil.copytree(stacked[0], tmp_path / "adapter")
    edit(adapter, **settings)
    with pytest.raises(AdapterError, match=message):
        read_adapter(adapter)


def edit(adapter: Path, **settings: Any) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text()) | settings
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def test_an_arm_has_all_of_its_adapter_or_is_refused(tmp_path: Path, tiny_checkpoint: Path):
    """What is measured must be the adapter, and not a part of it that PEFT happens to find."""
    for kind in ("mixtral", "qwen3_moe", "qwen2_moe"):
        model, _ = write_models(tmp_path / kind, mixture(kind))
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(tiny_checkpoint / file, model)
        stacked = write_adapter(tmp_path / f"{kind}_stacked", LOAD(model), 1, r=2, target_parameters=BOTH)
        single = single_experts(
            tmp_path / f"{kind}_single", model, LINEAR.get(kind, LINEAR["qwen3_moe"]), 1, 2
        )
        for adapter in (stacked, single):
            if (kind, adapter) == ("qwen2_moe", single):
                with pytest.raises(UnsupportedAdapterError, match=r"PEFT 0\.21 passes over these"):
                    load_arm(model, adapter)
            else:
                norms = {name: pair.norm() for name, pair in read_adapter(adapter).pairs.items()}
                loaded = load_arm(model, adapter).model
                assert squares(updates(loaded).values()) == pytest.approx(sum(x * x for x in norms.values()))


def squares(tensors: Iterable[torch.Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors)


SMALL = {
    "first_k_dense_replace": 0, "head_dim": 4, "kv_lora_rank": 4, "moe_intermediate_size": 12, "moe_k": 2,
    "moe_layer_start_index": 0, "moe_num_experts": 4, "moe_topk": 2, "n_group": 1, "n_routed_experts": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4, "q_lora_rank": 4,
    "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "topk_group": 1, "v_head_dim": 4,
}  # fmt: skip
"""Sizes of mixtures, by all the names that architectures have for them."""


@pytest.mark.parametrize("kind", sorted(architectures.EXPERTS))
def test_experts_lie_on_disk_where_the_table_says(tmp_path: Path, kind: str):
    config = transformers.AutoConfig.for_model(kind, **SIZES | SMALL)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    stacks = {
        name: tensor for name, tensor in model.named_parameters() if ".experts." in name and tensor.ndim == 3
    }
    assert {name.rpartition(".")[2] for name in stacks} == set(architectures.EXPERT_PARAMETERS)
    checkpoint = Checkpoint.open(tmp_path)
    for name, stack in stacks.items():
        places = checkpoint.locate([f"{name}.{index}" for index in range(len(stack))])
        for expert, place in zip(stack, places.values(), strict=True):
            turned = architectures.EXPERTS[kind].transposed
            assert torch.equal(checkpoint.read(place), expert.T if turned else expert)
            assert checkpoint.shape(place) == checkpoint.read(place).shape


def test_the_list_of_models_whose_single_experts_peft_passes_over():
    """Those that transformers has conversions of experts for, and PEFT none of their targets."""
    from peft.utils import transformers_weight_conversion as peft_conversion
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightConverter

    patterns = peft_conversion._MODEL_TO_CONVERSION_PATTERN
    kinds = {*conversion_mapping._build_checkpoint_conversion_mapping(), *patterns}
    stacked = {
        kind
        for kind in kinds
        for conversion in conversion_mapping.get_checkpoint_conversion_mapping(kind) or ()
        if isinstance(conversion, WeightConverter)
        and any(re.search(r"experts.*\*", pattern) for pattern in conversion.source_patterns)
    }
    turned = {kind for kind in stacked if patterns.get(kind) in peft_conversion._MOE_TARGET_MODULE_MAPPING}
    assert stacked - turned == architectures.PASSED_OVER
